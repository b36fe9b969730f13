"""A graft's own signal as a scorer: what guides, asked for its opinion of the whole response."""

from collections.abc import Sequence

import torch

from otter_cli.benchmarks.models import Grafted
from otter_cli.benchmarks.scorers.scorer import Exchange, ScorerRecord, Scores


class SignalScorer:
    """The signal's value at the last token of prompt and response, EOS appended as in training."""

    def __init__(self, graft: Grafted, signal: str) -> None:
        self.record = ScorerRecord(
            name=f"{graft.record.name}: {signal}",
            kind="signal",
            digest=graft.record.weights,
            labels=["reward"],
        )
        self._model, self._signal = graft.model, signal
        self._eos = graft.tokenizer.eos_token_id

    @torch.inference_mode()
    def score(self, exchanges: Sequence[Exchange]) -> Scores:
        return {"reward": [self._value([*e.prompt_tokens, *e.response_tokens]) for e in exchanges]}

    def _value(self, tokens: list[int]) -> float:
        ended = self._eos is None or tokens[-1] == self._eos
        ids = tokens if ended else [*tokens, self._eos]
        out = self._model(torch.tensor([ids], device=self._model.device), signals=(), logits=False)
        last = {name: state[:, -1] for name, state in out.inserted_state.items()}
        value = self._model.read_signal(self._signal, out.base_state[:, -1], last)
        return float(value.reshape(-1)[0])
