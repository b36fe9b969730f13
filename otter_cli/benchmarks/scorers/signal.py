"""A graft's own signal as a scorer: what guides, asked for its opinion of the whole response."""

from collections.abc import Sequence
from functools import cached_property

import torch

from otter_cli.benchmarks.models import Grafted
from otter_cli.benchmarks.scorers.scorer import Exchange, ScorerRecord, Scores
from otter_cli.data.chat_template import close_turn, turn_closing


class SignalScorer:
    """The signal's value at the last token of prompt and response, EOS appended as in training; of
    a dialogue at the token that ends the answer's turn, which the base's chat template says."""

    def __init__(self, graft: Grafted, signal: str) -> None:
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
        return {"reward": [self._value(self._ended(exchange)) for exchange in exchanges]}

    def _ended(self, exchange: Exchange) -> list[int]:
        tokens = [*exchange.prompt_tokens, *exchange.response_tokens]
        if exchange.messages:
            return close_turn(tokens, self._closing, self._eos)
        return tokens if self._eos is None or tokens[-1] == self._eos else [*tokens, self._eos]

    @cached_property
    def _closing(self) -> list[int]:
        return turn_closing(self._tokenizer)

    def _value(self, ids: list[int]) -> float:
        out = self._model(torch.tensor([ids], device=self._model.device), signals=(), logits=False)
        last = {name: state[:, -1] for name, state in out.inserted_state.items()}
        value = self._model.read_signal(self._signal, out.base_state[:, -1], last)
        return float(value.reshape(-1)[0])
