"""The registry of heads, and those that are linear, or nearly so, in [y ; v]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from otter_cli.signals.config import SignalConfig
from otter_cli.signals.future import Future
from otter_cli.signals.head import Head, Shapes, Unembedding, combine, rows_of
from otter_cli.signals.vocabulary import Vocabulary

if TYPE_CHECKING:
    from torch import Tensor


class Linear(Head):
    """Scores `[..., size]` linear in [y ; v]; one attribute drops the last dimension."""

    kind: ClassVar[str] = "value"

    def shapes(self, signal: SignalConfig, hidden: int, inserted: int, vocab: int) -> Shapes:
        return rows_of(signal.size, hidden, inserted)

    def forward(
        self,
        signal: SignalConfig,
        weights: Mapping[str, Tensor],
        base_state: Tensor,
        inserted_state: Tensor | None,
        unembedding: Unembedding,
    ) -> Tensor:
        scores = combine(weights, base_state, inserted_state)
        return scores.squeeze(-1) if signal.size == 1 and self.kind == "value" else scores


class Classes(Linear):
    """Multi-label logits `[..., classes]`; probabilities are their sigmoid."""

    kind: ClassVar[str] = "classes"


HEADS: dict[str, Head] = {head.kind: head for head in (Linear(), Classes(), Future(), Vocabulary())}
