"""How the next token of each row is chosen: by the base alone, or with the help of guides."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from otter_cli.decoding.sampling import Sampler
from otter_cli.decoding.state import State


class Chooser(ABC):
    """At work on one batch. The counters are of models beside the base: passes, bytes of cache."""

    external_passes: int = 0
    external_bytes: int = 0

    def prefill(self, prompts: list[list[int]]) -> None:
        """Feeds the prompts to models of its own; without one there is nothing to do."""
        return

    @abstractmethod
    def choose(self, state: State, logits: Tensor, sampler: Sampler) -> tuple[Tensor, State | None]:
        """Tokens [rows] by the base's state [rows, 1, d] and logits [rows, vocab] before them;
        their own states, where choosing them took feeding them."""


class Plain(Chooser):
    """The sampler's choice among the base's logits."""

    def choose(self, state: State, logits: Tensor, sampler: Sampler) -> tuple[Tensor, State | None]:
        return sampler.choose(logits), None
