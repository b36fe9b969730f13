"""Models as scorers of responses: a reward model, a graft's signal, a sentence encoder.

Each text has a forward of its own, since padding could change a score."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from otter_cli.core.errors import OtterError
from otter_cli.core.strict_files import read_json_object
from otter_cli.data.chat_template import close_turn, render_chat, turn_closing
from otter_cli.data.encoding import Encoder
from otter_cli.scorers.load import LoadedGraft, ModelRecord, load_encoder, scorer_folder
from otter_cli.scorers.scorer import Exchange, ScorerRecord, Scores


class RewardModelScorer:
    """The score of prompt and response together, with EOS as in training. A dialogue is written by
    the reward model's own chat template, and read at the token that ends the answer's turn."""

    def __init__(self, model: Any, tokenizer: Any, record: ModelRecord) -> None:
        self.record = ScorerRecord(
            name=record.name, kind=record.kind, digest=record.weights, labels=["reward"]
        )
        self._model, self._tokenizer = model, tokenizer
        positions = getattr(model.config, "max_position_embeddings", 1 << 20)
        self._encode = Encoder(tokenizer, positions, eos=tokenizer.eos_token_id is not None)

    @torch.inference_mode()
    def score(self, exchanges: Sequence[Exchange]) -> Scores:
        rewards = []
        encoded = self._encode([self._text(exchange) for exchange in exchanges])
        for ids in encoded.read_ids:
            tokens = torch.tensor([ids], device=self._model.device)
            mask = torch.ones_like(tokens)
            rewards.append(self._model(input_ids=tokens, attention_mask=mask).logits[0, 0].item())
        return {"reward": rewards}

    def _text(self, exchange: Exchange) -> str:
        if not exchange.messages:
            return exchange.prompt + exchange.response
        answer = {"role": "assistant", "content": exchange.response}
        try:
            return render_chat(self._tokenizer, [*exchange.messages, answer])
        except OtterError as error:
            raise OtterError(f"{self.record.name}: {error.what}", hint=error.hint) from error


class SignalScorer:
    """The signal's value at the last token of prompt and response, with EOS as in training; in a
    dialogue at the token with which the base's chat template ends the answer's turn."""

    def __init__(self, graft: LoadedGraft, signal: str) -> None:
        self.record = ScorerRecord(
            name=f"{graft.record.name}: {signal}",
            kind="signal",
            digest=graft.record.weights,
            labels=["reward"],
        )
        self._model, self._signal = graft.model, signal
        self._tokenizer, self._eos = graft.tokenizer, graft.tokenizer.eos_token_id

    @torch.inference_mode()
    def score(self, exchanges: Sequence[Exchange]) -> Scores:
        return {"reward": [self._value(self._finished_ids(exchange)) for exchange in exchanges]}

    def _finished_ids(self, exchange: Exchange) -> list[int]:
        tokens = [*exchange.prompt_tokens, *exchange.response_tokens]
        if exchange.messages:
            return close_turn(tokens, self._turn_closing, self._eos)
        return tokens if self._eos is None or tokens[-1] == self._eos else [*tokens, self._eos]

    @cached_property
    def _turn_closing(self) -> list[int]:
        return turn_closing(self._tokenizer)

    def _value(self, ids: list[int]) -> float:
        out = self._model(torch.tensor([ids], device=self._model.device), signals=(), logits=False)
        last = {name: state[:, -1] for name, state in out.inserted_state.items()}
        value = self._model.read_signal(self._signal, out.base_state[:, -1], last)
        return float(value.reshape(-1)[0])


class EncoderScorer:
    """Coherence: the cosine of the embeddings of prompt and response (docs/method.md, "Metrics and
    intervals"); 0 for an empty response.

    `folder`: any encoder that transformers loads. An embedding is the mean of the tokens' states,
    or the first token's state where the folder's 1_Pooling/config.json (sentence-transformers)
    says so.
    """

    def __init__(self, folder: Path, *, device: str = "cpu") -> None:
        folder = scorer_folder(folder)
        self._model, self._tokenizer, record = load_encoder(folder, device=device)
        self._first_token = _pools_first_token(folder)
        self.record = ScorerRecord(
            name=record.name, kind=record.kind, digest=record.weights, labels=["coherence"]
        )

    def score(self, exchanges: Sequence[Exchange]) -> Scores:
        return {"coherence": [self._cosine(e.question, e.response) for e in exchanges]}

    def _cosine(self, prompt: str, response: str) -> float:
        if not response.strip():
            return 0.0
        embeddings = self._embedding(prompt), self._embedding(response)
        return float(torch.nn.functional.cosine_similarity(*embeddings, dim=0))

    @torch.inference_mode()
    def _embedding(self, text: str) -> Tensor:
        """[d], by a forward of this text alone."""
        longest = getattr(self._model.config, "max_position_embeddings", None)
        ids = self._tokenizer(text, return_tensors="pt", truncation=True, max_length=longest)
        state = self._model(input_ids=ids.input_ids.to(self._model.device)).last_hidden_state[0]
        return state[0] if self._first_token else state.mean(0)


def _pools_first_token(folder: Path) -> bool:
    pooling = folder / "1_Pooling" / "config.json"
    return pooling.is_file() and bool(read_json_object(pooling)["pooling_mode_cls_token"])
