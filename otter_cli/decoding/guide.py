"""A guide is a frozen request: how strongly a score of possible next tokens bends the base's
logits. `scorer` checks it and gives what works on one batch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from otter_cli.core.errors import OtterError
from otter_cli.decoding.session import DecodingSession
from otter_cli.decoding.state import State

# One for all prompts, or one for each.
Strength = float | tuple[float, ...]


class Scorer(ABC):
    """Scores of candidates [rows, k] at work on one batch; what it runs beside the base counts."""

    feeds: ClassVar[bool] = False  # whether the base has to feed the candidates first
    over_trees: ClassVar[bool] = False  # whether it can score after tokens of a draft
    external_passes: int = 0
    external_bytes: int = 0

    def prefill(self, prompts: list[list[int]]) -> None:
        """Feeds the prompts to a model of its own, where there is one."""
        return

    @abstractmethod
    def scores(self, state: State, fed: State | None, tokens: Tensor | None) -> Tensor:
        """Of tokens [rows, k], or of the whole vocabulary, by the states before them [rows, 1, d]
        and, of a scorer that `feeds`, their own [rows, k, d]."""

    def chose(self, tokens: Tensor, index: Tensor | None) -> None:
        """Tokens [rows] come next; `index` [rows] is their place among those it has scored, None
        where it was not asked."""
        return


class Guide(ABC):
    """`logit + strength * score` over the `candidates` best by logits (0: all), then argmax or a
    draw from them. A negative strength steers away."""

    name: ClassVar[str]
    paper: ClassVar[str]
    needs_stream: ClassVar[bool] = False
    strength: Strength
    candidates: int

    @abstractmethod
    def scorer(self, session: DecodingSession) -> Scorer:
        """Raises OtterError where the guide can't work with the session's graft."""

    def within(self, logits: Tensor) -> Tensor:
        """Logits [rows, vocab] of what may be chosen; minus infinity elsewhere."""
        return logits

    @property
    def strengths(self) -> tuple[float, ...]:
        return self.strength if isinstance(self.strength, tuple) else (self.strength,)

    def check(self, rows: int, vocab: int) -> None:
        """Raises OtterError for strengths or a number of candidates without meaning."""
        for strength in self.strengths:
            if not math.isfinite(strength):
                raise OtterError(
                    f"the guide's strength is {strength}", hint="a number; 0 is plain decoding"
                )
        if len(self.strengths) not in (1, rows):
            raise OtterError(
                f"{len(self.strengths)} strengths of a guide, for {rows} prompts",
                hint="one for all, or one for each",
            )
        if not 0 <= self.candidates <= vocab:
            raise OtterError(
                f"{self.candidates} candidates, of a vocabulary of {vocab}",
                hint=f"from 1 to {vocab}; 0: all",
            )
