"""Guides choose the next token by the base's logits and a reward of each candidate.

A guide is bound to one batch and then picks token after token; it reports its extra passes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from otter_cli.core.errors import OtterError
from otter_cli.core.suggest import closest
from otter_cli.decoding.sampling import Sampler
from otter_cli.decoding.session import DecodingSession, RewardSession, State


class Bound(ABC):
    """A guide at work on one batch."""

    external_passes: int = 0
    external_bytes: int = 0

    @abstractmethod
    def pick(self, logits: Tensor, sampler: Sampler) -> tuple[Tensor, State]:
        """From logits [rows, vocab]: the chosen tokens [rows], already fed, and their states."""


@dataclass(frozen=True)
class SignalGuide:
    """V-style guidance by a signal of the graft: `logit + strength * signal` over the top k.

    One pass of k tokens a step; the winner's next logits come out of it (METHOD, 3). A class
    signal guides by its probability. A negative strength steers away.
    """

    signal: str
    strength: float
    candidates: int = 10
    label: str | None = None

    needs_stream = True

    def bind(self, session: DecodingSession, prompts: list[list[int]]) -> Bound:
        """Raises OtterError for a signal that scores nothing, or an unknown label."""
        return _BySignal(self, session)


class _BySignal(Bound):
    def __init__(self, guide: SignalGuide, session: DecodingSession) -> None:
        self.guide, self.session = guide, session
        self.column = _column(session, guide.signal, guide.label)

    def pick(self, logits: Tensor, sampler: Sampler) -> tuple[Tensor, State]:
        top = logits.topk(self.guide.candidates, -1)
        states = self.session.branch(top.indices)
        rewards = signal_scores(self.session, self.guide.signal, states)[..., self.column]
        index = sampler.choose(top.values + self.guide.strength * rewards)
        self.session.choose(index)
        return top.indices.gather(1, index[:, None])[:, 0], states.at(index)


@dataclass(frozen=True)
class ArgsGuide:
    """ARGS (arXiv 2402.01694, section 2): `logit + strength * r([x, y, v])` over the top k, by a
    separate reward model. Fair to it: cached, its k candidates one step over a shared prefix."""

    reward_model: Any
    strength: float
    candidates: int = 10

    needs_stream = False

    def bind(self, session: DecodingSession, prompts: list[list[int]]) -> Bound:
        """Raises OtterError where the reward model reads another vocabulary."""
        theirs, ours = self.reward_model.config.vocab_size, session.model.config.vocab_size
        if theirs != ours:
            raise OtterError(
                f"the reward model's vocabulary has {theirs} tokens, the base's {ours}",
                hint="ARGS scores the base's own tokens: train it from the same base",
            )
        return _ByRewardModel(self, session, prompts)


class _ByRewardModel(Bound):
    def __init__(
        self, guide: ArgsGuide, session: DecodingSession, prompts: list[list[int]]
    ) -> None:
        self.guide, self.session = guide, session
        self.rewards = RewardSession(guide.reward_model)
        self.rewards.prefill(prompts)

    def pick(self, logits: Tensor, sampler: Sampler) -> tuple[Tensor, State]:
        top = logits.topk(self.guide.candidates, -1)
        rewards = self.rewards.rewards(self.rewards.branch(top.indices))
        index = sampler.choose(top.values + self.guide.strength * rewards)
        self.rewards.choose(index)
        self.external_passes = self.rewards.passes
        self.external_bytes = self.rewards.cache_bytes()
        tokens = top.indices.gather(1, index[:, None])[:, 0]
        return tokens, self.session.step(tokens)


def signal_scores(session: DecodingSession, name: str, state: State) -> Tensor:
    """Scores of a signal, [rows, n, attributes or classes]: values as they are, probabilities."""
    config = session.model.signal_configs[name]
    scores = session.read(name, state)
    if config.kind == "classes":
        return scores.sigmoid()
    return scores[..., None] if config.size == 1 else scores


def check_scores(session: DecodingSession, name: str) -> None:
    """Raises OtterError where `name` is no signal of the graft, or one that scores nothing."""
    known = session.model.signal_configs
    if name not in known:
        near = closest(name, known)
        raise OtterError(
            f"there is no signal {name!r} in this graft",
            hint=(f"did you mean {near!r}? " if near else "")
            + f"its signals: {', '.join(known) or 'none'}",
        )
    if known[name].kind == "future":
        raise OtterError(
            f"signal {name!r} predicts tokens, it does not score them",
            hint=f"use it to draft: --draft {name}",
        )


def _column(session: DecodingSession, name: str, label: str | None) -> int:
    check_scores(session, name)
    labels = session.model.signal_configs[name].labels
    if label is None:
        return 0
    if label not in labels:
        raise OtterError(
            f"signal {name!r} has no label {label!r}", hint=f"its labels: {', '.join(labels)}"
        )
    return labels.index(label)
