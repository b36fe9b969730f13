"""Guidance by a separate reward model, cached: ARGS and RAD, the baselines of one-pass guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from otter_cli.core.errors import OtterError
from otter_cli.decoding.guide import Guide, Scorer, Strength
from otter_cli.decoding.session import DecodingSession, RewardSession
from otter_cli.decoding.state import State


@dataclass(frozen=True)
class ArgsGuide(Guide):
    """ARGS (section 2): `logit + strength * r([x, y, v])` over the top k raw logits; argmax, or at
    a temperature a draw from the k (ARGS-stochastic).

    Costs a pass of the reward model for each token, and its cache. Fair to it: its k candidates
    are one step of k tokens over a cached prefix, as the insertion's are, not k rows.
    """

    reward_model: Any
    strength: Strength
    candidates: int = 10

    name: ClassVar[str] = "args"
    paper: ClassVar[str] = "Khanov et al., arXiv 2402.01694"

    def scorer(self, session: DecodingSession) -> Scorer:
        check_reward_model(self.reward_model, session, "ARGS")
        return _Rewards(self.reward_model)


@dataclass(frozen=True)
class RadGuide(Guide):
    """RAD (algorithm 1): `logit + strength * clip(r, 0, 1)`, all outside the top k removed.

    Costs what ARGS does: a pass of a (smaller) reward model of k tokens for each token.
    """

    reward_model: Any
    strength: Strength
    candidates: int = 20

    name: ClassVar[str] = "rad"
    paper: ClassVar[str] = "Deng and Raffel, arXiv 2310.09520"

    def scorer(self, session: DecodingSession) -> Scorer:
        check_reward_model(self.reward_model, session, "RAD")
        return _ClippedRewards(self.reward_model)


class _Rewards(Scorer):
    def __init__(self, reward_model: Any) -> None:
        self.rewards = RewardSession(reward_model)
        self.unfed: list[Tensor] = []

    def prefill(self, prompts: list[list[int]]) -> None:
        self.rewards.prefill(prompts)

    def scores(self, state: State, fed: State | None, tokens: Tensor | None) -> Tensor:
        assert tokens is not None
        if self.unfed:  # chosen while the gate was closed
            chain = torch.stack(self.unfed, 1)
            self.rewards.extend(chain)
            self.rewards.keep(torch.full_like(chain[:, 0], chain.shape[1]))
            self.unfed = []
        found = self.rewards.rewards(self.rewards.branch(tokens))
        self.external_passes = self.rewards.passes
        return found

    def chose(self, tokens: Tensor, index: Tensor | None) -> None:
        if index is None:
            self.unfed.append(tokens)
        else:
            self.rewards.choose(index)
        self.external_passes = self.rewards.passes
        self.external_bytes = self.rewards.cache_bytes()


class _ClippedRewards(_Rewards):
    def scores(self, state: State, fed: State | None, tokens: Tensor | None) -> Tensor:
        return super().scores(state, fed, tokens).clamp(0, 1)


def check_reward_model(reward_model: Any, session: DecodingSession, method: str) -> None:
    """Raises OtterError where it reads another vocabulary, or gives more than one number."""
    config, vocab = reward_model.config, session.model.shape.vocab
    if config.vocab_size != vocab:
        raise OtterError(
            f"the reward model's vocabulary has {config.vocab_size} tokens, the base's {vocab}",
            hint=f"{method} scores the base's own tokens: train it from the same base",
        )
    if config.num_labels != 1:
        raise OtterError(
            f"the reward model gives {config.num_labels} numbers, and a reward is one",
            hint="use a model with num_labels 1",
        )
