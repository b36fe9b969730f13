"""Guidance by a signal of the graft, V-style: no pass beside the base's own (METHOD, 3)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from otter_cli.decoding.choosing import Chooser, check_guidance, steered
from otter_cli.decoding.sampling import Sampler
from otter_cli.decoding.scores import score_column, signal_scores
from otter_cli.decoding.session import DecodingSession
from otter_cli.decoding.state import State


@dataclass(frozen=True)
class SignalGuide:
    """`logit + strength * signal` over the top k by logits, then argmax, or a draw from the k.

    Costs one step of k tokens in place of one of 1; the winner's next logits come out of it. A
    class signal guides by its probability. A negative strength steers away.
    """

    signal: str
    strength: float
    candidates: int = 10
    label: str | None = None

    @property
    def needs_stream(self) -> bool:
        return self.strength != 0

    def bind(self, session: DecodingSession) -> Chooser:
        """Raises OtterError for a signal that scores nothing, an unknown label, k out of range."""
        check_guidance(self.strength, self.candidates, session.model.shape.vocab)
        return _BySignal(self, session, score_column(session.model, self.signal, self.label))


class _BySignal(Chooser):
    def __init__(self, guide: SignalGuide, session: DecodingSession, column: int) -> None:
        self.guide, self.session, self.column = guide, session, column

    def choose(self, logits: Tensor, sampler: Sampler) -> tuple[Tensor, State | None]:
        top = logits.topk(self.guide.candidates, -1)
        states = self.session.branch(top.indices)
        rewards = signal_scores(self.session, self.guide.signal, states)[..., self.column]
        index = sampler.choose(steered(top.values, self.guide.strength, rewards))
        self.session.choose(index)
        return top.indices.gather(1, index[:, None])[:, 0], states.at(index)
