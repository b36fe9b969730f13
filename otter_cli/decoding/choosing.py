"""How the next token of each row is chosen: by the base alone, or with a guide's help.

A guide is a frozen request; `bind` checks it and gives the Chooser that works on one batch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from torch import Tensor

from otter_cli.core.errors import OtterError
from otter_cli.decoding.sampling import Sampler
from otter_cli.decoding.state import State


class Chooser(ABC):
    """At work on one batch. The counters are of models beside the base: passes, bytes of cache."""

    external_passes: int = 0
    external_bytes: int = 0

    def prefill(self, prompts: list[list[int]]) -> None:
        """Feeds the prompts to a model of its own; without one there is nothing to do."""
        return

    @abstractmethod
    def choose(self, logits: Tensor, sampler: Sampler) -> tuple[Tensor, State | None]:
        """Tokens [rows] by the base's logits [rows, vocab]; their states, where choosing them
        took feeding them."""


class Plain(Chooser):
    """The sampler's choice among the base's logits."""

    def choose(self, logits: Tensor, sampler: Sampler) -> tuple[Tensor, State | None]:
        return sampler.choose(logits), None


def check_guidance(strength: float, candidates: int, vocab: int) -> None:
    """Raises OtterError for a strength or a number of candidates without meaning."""
    if not math.isfinite(strength):
        raise OtterError(
            f"the guide's strength is {strength}", hint="a number; 0 is plain decoding"
        )
    if not 1 <= candidates <= vocab:
        raise OtterError(
            f"{candidates} candidates, of a vocabulary of {vocab}", hint=f"from 1 to {vocab}"
        )


def steered(logits: Tensor, strength: float, rewards: Tensor) -> Tensor:
    """`logit + strength * reward`. Raises OtterError where a reward is no number: an argmax over
    NaN would choose it."""
    if not rewards.isfinite().all():
        raise OtterError(
            "the guide gave a reward that is not finite",
            hint="was its training stopped by NaN? look at its metrics, or train it again",
        )
    return logits + strength * rewards
