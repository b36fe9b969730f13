"""Guides by other models beside the base: ARGS and RAD, DExperts and GenARM.

These are the baselines of one-pass guidance. Each model keeps a KV cache of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from otter_cli.core.errors import OtterError
from otter_cli.decoding.guides.guide import CandidateScorer, Guide, Strength
from otter_cli.decoding.kv_session import HiddenStates
from otter_cli.decoding.sampling import outside_nucleus
from otter_cli.decoding.session import (
    DecodingSession,
    ExpertSession,
    RewardSession,
    check_vocabulary,
)


@dataclass(frozen=True)
class ArgsGuide(Guide):
    """ARGS (section 2): `logit + strength * r([x, y, v])` over the top k raw logits; argmax, or at
    a temperature a draw from the k (ARGS-stochastic). Costs a pass of the reward model for each
    token, and its cache. The comparison is fair: its k candidates are one step of k tokens over a
    cached prefix, as those of a signal are."""

    reward_model: Any
    strength: Strength
    candidates: int = 10

    name: ClassVar[str] = "args"
    paper: ClassVar[str] = "Khanov et al., arXiv 2402.01694"

    def scorer(self, session: DecodingSession) -> CandidateScorer:
        check_reward_model(self.reward_model, session, "ARGS")
        return _RewardScorer(self.reward_model)


@dataclass(frozen=True)
class RadGuide(Guide):
    """RAD (algorithm 1): `logit + strength * clip(r, 0, 1)` over the top k; no other token comes.
    Costs a pass of a (smaller) reward model of k tokens for each token, as ARGS does."""

    reward_model: Any
    strength: Strength
    candidates: int = 20

    name: ClassVar[str] = "rad"
    paper: ClassVar[str] = "Deng and Raffel, arXiv 2310.09520"

    def scorer(self, session: DecodingSession) -> CandidateScorer:
        check_reward_model(self.reward_model, session, "RAD")
        return _RewardScorer(self.reward_model, clip=True)


class _RewardScorer(CandidateScorer):
    def __init__(self, reward_model: Any, *, clip: bool = False) -> None:
        self.rewards, self.clip = RewardSession(reward_model), clip
        self.pending_tokens: list[Tensor] = []  # chosen while the gate was closed

    def prefill(self, prompts: list[list[int]]) -> None:
        self.rewards.prefill(prompts)

    def scores(
        self, state: HiddenStates, candidate_states: HiddenStates | None, tokens: Tensor | None
    ) -> Tensor:
        assert tokens is not None
        if self.pending_tokens:
            self.rewards.append(torch.stack(self.pending_tokens, 1))
            self.pending_tokens = []
        rewards = self.rewards.rewards(self.rewards.extend_candidates(tokens))
        self.external_passes = self.rewards.passes
        return rewards.clamp(0, 1) if self.clip else rewards

    def observe(self, tokens: Tensor, index: Tensor | None) -> None:
        if index is None:
            self.pending_tokens.append(tokens)
        else:
            self.rewards.keep_candidate(index)
        self.external_passes = self.rewards.passes
        self.external_bytes = self.rewards.cache_bytes()


def check_reward_model(reward_model: Any, session: DecodingSession, method: str) -> None:
    """Raises OtterError where it has another vocabulary, or gives more than one number."""
    hint = f"{method} scores the base's own tokens: train it from the same base"
    check_vocabulary(reward_model, session, "the reward model", hint)
    if reward_model.config.num_labels != 1:
        raise OtterError(
            f"the reward model gives {reward_model.config.num_labels} numbers, and a reward is one",
            hint="use a model with num_labels 1",
        )


@dataclass(frozen=True)
class DExpertsGuide(Guide):
    """`z + strength * (z+ - z-)` over the base's nucleus (section 2.1), with the logits z+ of an
    expert and z- of an anti-expert. Where one of them is None, the base's logits take its place.
    Costs a pass of each model for each token, and their caches."""

    expert: Any | None
    anti_expert: Any | None
    strength: Strength
    top_p: float = 0.9
    candidates: int = 0

    name: ClassVar[str] = "dexperts"
    paper: ClassVar[str] = "Liu et al., arXiv 2105.03023"

    def scorer(self, session: DecodingSession) -> CandidateScorer:
        if self.expert is None and self.anti_expert is None:
            raise OtterError("DExperts has neither expert nor anti-expert", hint="give one of them")
        if not 0 < self.top_p <= 1:
            raise OtterError(f"DExperts' top_p is {self.top_p}", hint="above 0, at most 1 (all)")
        for model in (self.expert, self.anti_expert):
            check_expert(model, session)
        return _ContrastScorer(session, self.expert, self.anti_expert)

    def restrict(self, logits: Tensor) -> Tensor:
        if self.top_p == 1:
            return logits
        return logits.masked_fill(outside_nucleus(logits.double(), self.top_p), -math.inf)


@dataclass(frozen=True)
class GenArmGuide(Guide):
    """`log pi + strength * log pi_r` (equation 6), with an autoregressive reward model pi_r: a
    language model with the base's vocabulary. Costs a pass of the reward model for each token, and
    its cache; it scores the whole vocabulary."""

    reward_model: Any
    strength: Strength
    candidates: int = 0

    name: ClassVar[str] = "genarm"
    paper: ClassVar[str] = "Xu et al., arXiv 2410.08193"

    def scorer(self, session: DecodingSession) -> CandidateScorer:
        check_expert(self.reward_model, session)
        return _LogProbabilityScorer(self.reward_model)


class _FollowingExpert(ExpertSession):
    """A language model that follows the text. Chosen tokens are fed when its logits are read."""

    def start(self, prompts: list[list[int]]) -> None:
        self.last, self.pending_tokens = self.prefill(prompts), list[Tensor]()

    def next_logits(self) -> Tensor:
        """Of the next token, [rows, vocab]."""
        if self.pending_tokens:
            self.last = self.append(torch.stack(self.pending_tokens, 1)).last()
            self.pending_tokens = []
        return self.last.base[:, 0]


class _ExpertScorer(CandidateScorer):
    experts: list[_FollowingExpert]

    def prefill(self, prompts: list[list[int]]) -> None:
        for expert in self.experts:
            expert.start(prompts)

    def observe(self, tokens: Tensor, index: Tensor | None) -> None:
        for expert in self.experts:
            expert.pending_tokens.append(tokens)
        self.external_passes = sum(expert.passes for expert in self.experts)
        self.external_bytes = sum(expert.cache_bytes() for expert in self.experts)


class _ContrastScorer(_ExpertScorer):
    def __init__(self, session: DecodingSession, expert: Any, anti_expert: Any) -> None:
        self.base = session
        self.expert, self.anti_expert = (
            None if model is None else _FollowingExpert(model) for model in (expert, anti_expert)
        )
        self.experts = [e for e in (self.expert, self.anti_expert) if e is not None]

    def scores(
        self, state: HiddenStates, candidate_states: HiddenStates | None, tokens: Tensor | None
    ) -> Tensor:
        expert, anti_expert = (
            self.base.logits(state)[:, 0] if model is None else model.next_logits()
            for model in (self.expert, self.anti_expert)
        )
        return _scores_of_tokens(expert - anti_expert, tokens)


class _LogProbabilityScorer(_ExpertScorer):
    def __init__(self, model: Any) -> None:
        self.experts = [_FollowingExpert(model)]

    def scores(
        self, state: HiddenStates, candidate_states: HiddenStates | None, tokens: Tensor | None
    ) -> Tensor:
        return _scores_of_tokens(self.experts[0].next_logits().log_softmax(-1), tokens)


def _scores_of_tokens(scores: Tensor, tokens: Tensor | None) -> Tensor:
    return scores if tokens is None else scores.gather(-1, tokens)


def check_expert(model: Any | None, session: DecodingSession) -> None:
    """Raises OtterError where a language model has another vocabulary than the base."""
    if model is not None:
        hint = "its logits are added to the base's: use one with the same tokenizer"
        check_vocabulary(model, session, "the expert model", hint)
