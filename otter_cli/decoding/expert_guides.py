"""Guidance by other language models, cached: DExperts, its halves, and GenARM."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from otter_cli.core.errors import OtterError
from otter_cli.decoding.guide import Guide, Scorer, Strength
from otter_cli.decoding.sampling import nucleus
from otter_cli.decoding.session import DecodingSession, ExpertSession
from otter_cli.decoding.state import State


@dataclass(frozen=True)
class DExpertsGuide(Guide):
    """`z + strength * (z+ - z-)` over the base's nucleus (section 2.1), z+ an expert's logits and
    z- an anti-expert's. Without one of them the base's own stand in: contrast with one model alone.

    Costs a pass of each model for each token, and their caches.
    """

    expert: Any | None
    anti_expert: Any | None
    strength: Strength
    top_p: float = 0.9
    candidates: int = 0

    name: ClassVar[str] = "dexperts"
    paper: ClassVar[str] = "Liu et al., arXiv 2105.03023"

    def scorer(self, session: DecodingSession) -> Scorer:
        if self.expert is None and self.anti_expert is None:
            raise OtterError("DExperts has neither expert nor anti-expert", hint="give one of them")
        if not 0 < self.top_p <= 1:
            raise OtterError(f"DExperts' top_p is {self.top_p}", hint="above 0, at most 1 (all)")
        for model in (self.expert, self.anti_expert):
            check_expert(model, session)
        return _Contrast(session, self.expert, self.anti_expert)

    def within(self, logits: Tensor) -> Tensor:
        if self.top_p == 1:
            return logits
        return logits.masked_fill(nucleus(logits.double(), self.top_p), -math.inf)


@dataclass(frozen=True)
class GenArmGuide(Guide):
    """`log pi + strength * log pi_r` (equation 6), pi_r an autoregressive reward model: a language
    model of the base's vocabulary.

    Costs a pass of the reward model for each token, and its cache; it scores the whole vocabulary.
    """

    reward_model: Any
    strength: Strength
    candidates: int = 0

    name: ClassVar[str] = "genarm"
    paper: ClassVar[str] = "Xu et al., arXiv 2410.08193"

    def scorer(self, session: DecodingSession) -> Scorer:
        check_expert(self.reward_model, session)
        return _LogProbabilities(self.reward_model)


class _Expert:
    """A language model that follows the text; its last token is fed once its logits are wanted."""

    def __init__(self, model: Any) -> None:
        self.session = ExpertSession(model)
        self.unfed: list[Tensor] = []

    def logits(self) -> Tensor:
        """Of the next token, [rows, vocab]."""
        if self.unfed:
            chain = torch.stack(self.unfed, 1)
            self.last = self.session.extend(chain).last()
            self.session.keep(torch.full_like(chain[:, 0], chain.shape[1]))
            self.unfed = []
        return self.last.base[:, 0]

    def prefill(self, prompts: list[list[int]]) -> None:
        self.last = self.session.prefill(prompts)


class _ByExperts(Scorer):
    experts: list[_Expert]

    def prefill(self, prompts: list[list[int]]) -> None:
        for expert in self.experts:
            expert.prefill(prompts)

    def chose(self, tokens: Tensor, index: Tensor | None) -> None:
        for expert in self.experts:
            expert.unfed.append(tokens)
        self.external_passes = sum(expert.session.passes for expert in self.experts)
        self.external_bytes = sum(expert.session.cache_bytes() for expert in self.experts)


class _Contrast(_ByExperts):
    def __init__(self, session: DecodingSession, expert: Any, anti_expert: Any) -> None:
        self.base = session
        self.expert, self.anti_expert = (
            None if model is None else _Expert(model) for model in (expert, anti_expert)
        )
        self.experts = [one for one in (self.expert, self.anti_expert) if one is not None]

    def scores(self, state: State, fed: State | None, tokens: Tensor | None) -> Tensor:
        good, bad = (
            self.base.logits(state)[:, 0] if one is None else one.logits()
            for one in (self.expert, self.anti_expert)
        )
        return _of(good - bad, tokens)


class _LogProbabilities(_ByExperts):
    def __init__(self, model: Any) -> None:
        self.experts = [_Expert(model)]

    def scores(self, state: State, fed: State | None, tokens: Tensor | None) -> Tensor:
        return _of(self.experts[0].logits().log_softmax(-1), tokens)


def _of(scores: Tensor, tokens: Tensor | None) -> Tensor:
    return scores if tokens is None else scores.gather(-1, tokens)


def check_expert(model: Any | None, session: DecodingSession) -> None:
    """Raises OtterError where a language model reads another vocabulary than the base."""
    vocab = session.model.shape.vocab
    if model is not None and model.config.vocab_size != vocab:
        raise OtterError(
            f"a language model beside the base has a vocabulary of {model.config.vocab_size}, "
            f"the base {vocab}",
            hint="its logits are added to the base's: use one with the same tokenizer",
        )
