"""A separate reward model as a scorer: one text a pass, so that no padding moves its scores."""

from collections.abc import Sequence
from typing import Any

import torch

from otter_cli.benchmarks.scorers.scorer import Exchange, ScorerRecord, Scores
from otter_cli.benchmarks.settings import ModelRecord
from otter_cli.core.errors import OtterError
from otter_cli.data.chat_template import chat
from otter_cli.data.encoding import Encoder


class RewardModelScorer:
    """The score of prompt and response together, EOS appended as in training; of a dialogue as the
    reward model's own chat template writes it, at the token that ends the answer's turn."""

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
        read = self._encode([self._text(exchange) for exchange in exchanges])
        for ids, end in zip(read.ids, read.lengths, strict=True):
            tokens = torch.tensor([ids[:end]], device=self._model.device)
            mask = torch.ones_like(tokens)
            rewards.append(self._model(input_ids=tokens, attention_mask=mask).logits[0, 0].item())
        return {"reward": rewards}

    def _text(self, exchange: Exchange) -> str:
        if not exchange.messages:
            return exchange.prompt + exchange.response
        answer = {"role": "assistant", "content": exchange.response}
        try:
            return chat(self._tokenizer, [*exchange.messages, answer])
        except OtterError as error:
            raise OtterError(f"{self.record.name}: {error.what}", hint=error.hint) from error
