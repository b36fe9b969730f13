"""What is asked of a generation and what comes back."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from otter_cli.core.errors import OtterError

Scores = list[float] | list[list[float]]


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. Temperature 0 is greedy; `top_k` 0 and `top_p` 1 cut nothing off.

    Every row draws from a generator of its own, seeded by `seed` and the row's place among equal
    prompts: what else is in the batch does not matter. OtterError for values without meaning.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        bounds = (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            # Written so that NaN fails too.
            ("temperature", 0 <= self.temperature < math.inf, "0 (greedy) or more"),
            ("top_k", self.top_k >= 0, "0 (all) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0, and at most 1 (all)"),
        )
        for name, holds, wanted in bounds:
            if not holds:
                raise OtterError(f"{name} is {getattr(self, name)}", hint=f"it must be {wanted}")


@dataclass
class Counters:
    """What a generation cost. Passes and seconds are the batch's, which its rows share."""

    base_passes: int = 0
    external_passes: int = 0
    rescoring_passes: int = 0  # of the base, one token each, to decide near-ties
    tokens_fed: int = 0
    tokens_kept: int = 0
    # By position of the draft: how often one was proposed there, and how often it was kept.
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    seconds: float = 0.0
    prefill_seconds: float = 0.0
    cache_bytes: int = 0


@dataclass(frozen=True)
class NearTie:
    """A greedy choice out of a step of many tokens that a step of one might round the other way.

    `position` in the generated tokens; the two best tokens of the step of many and the gap between
    their logits; what the step of one token chooses, where it was asked (`both_paths`).
    """

    position: int
    best: int
    second: int
    gap: float
    one_token: int | None = None


@dataclass
class Generation:
    """One row: tokens (EOS included), the base's log-probability of each, its signals by name."""

    tokens: list[int]
    logprobs: list[float]
    signals: dict[str, Scores]
    finish: Literal["eos", "length", "stop", "rejected"]
    counters: Counters
    message: str = ""  # why it was stopped, where a stop string or a signal did
    near_ties: list[NearTie] = field(default_factory=list)
    # The log-probability by which each token was drawn, guides included: 0 of a greedy one. Nothing
    # where drafts were verified.
    drawn: list[float] = field(default_factory=list)
    lossy: bool = False  # drafts were accepted by likelihood: not the base's own distribution
