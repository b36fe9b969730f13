"""Multi-label classification of texts, at their end or while they are being written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import NonNegativeFloat, model_validator

from otter_cli.core.errors import OtterError
from otter_cli.core.intervals import Interval, auroc, f1, interval, mean
from otter_cli.signals import SignalConfig
from otter_cli.training.objectives.labelled import LabelledObjective, LabelledSource
from otter_cli.training.objectives.objective import (
    Positions,
    Read,
    last_tokens,
    read_alone,
    real_tokens,
    weighed_by_text,
)

if TYPE_CHECKING:
    from torch import Tensor

    from otter_cli.data.datasets import Batch


class SpanSource(LabelledSource):
    """`since`: a column with the character at which begins what the labels are for, or nothing."""

    since: str | None = None

    @property
    def beginning(self) -> str | None:
        return self.since


class Classification(LabelledObjective):
    """Binary cross-entropy of each label at the last token; or at every one, with weights that
    grow with position, and texts that weigh the same whatever their length. Where the data say
    `since` which character a label holds, earlier tokens have none.

    `consistency`, at every token: the weight of `max(0, p_t - p_t+1)` of a label that is set: what
    has been said stays said (METHOD, 3, streaming)."""

    kinds: ClassVar[tuple[str, ...]] = ("classes",)

    objective: Literal["classification"] = "classification"
    train: SpanSource
    test: SpanSource | None = None
    positions: Literal["last", "every"] = "last"
    consistency: NonNegativeFloat = 0.0

    @model_validator(mode="after")
    def _consistent_over_tokens(self) -> Self:
        if self.consistency and self.positions == "last":
            raise ValueError("consistency is between tokens: it needs positions: every")
        return self

    def check_rows(
        self, rows: Sequence[Any], signal: SignalConfig, what: str, *, tested: bool
    ) -> None:
        """AUROC needs rows with each label, and rows without it."""
        for column, label in enumerate(signal.labels if tested else ()):
            count = sum(row.labels[column] >= 0.5 for row in rows)
            if count in (0, len(rows)):
                raise OtterError(
                    f"signal {signal.name}: {'none' if count == 0 else 'all'} of the {len(rows)} "
                    f"{what} rows have label {label!r}, and AUROC needs both kinds",
                    hint="give more rows, another split, or more of the rare class",
                )

    def loss(self, read: Read, batch: Batch) -> Tensor:
        import torch.nn.functional as F

        assert batch.labels is not None
        if self.positions == "last":
            logits = read_alone(read, batch, last_tokens(batch))
            return F.binary_cross_entropy_with_logits(logits, batch.labels)
        at = real_tokens(batch)
        logits, labels = read(batch, at), batch.labels[at[0]]
        if batch.since is not None:
            labels = labels * (at[1] >= batch.since[at[0]])[:, None]
        each = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(-1)
        loss = weighed_by_text(each, at, batch.last)
        if self.consistency:
            loss = loss + self.consistency * _falls(logits.sigmoid(), labels, at, len(batch.last))
        return loss

    def outcomes(self, read: Read, batch: Batch) -> dict[str, Tensor]:
        assert batch.labels is not None
        return {"score": read(batch, last_tokens(batch)), "label": batch.labels}

    def metrics(
        self, outcomes: Mapping[str, np.ndarray], signal: SignalConfig
    ) -> dict[str, Interval]:
        truth, found = outcomes["label"] >= 0.5, {}
        for column, label in enumerate(signal.labels):
            score, true = outcomes["score"][:, column], truth[:, column]
            figures = {
                "auroc": auroc(score, true),
                "f1": f1(score > 0, true),
                "accuracy": mean((score > 0) == true),
            }
            suffix = f"/{label}" if signal.size > 1 else ""
            for name, figure in figures.items():
                what = f"{name} of {signal.name}{suffix}"
                found[name + suffix] = interval(figure, len(true), what=what)
        return found


def _falls(scores: Tensor, labels: Tensor, at: Positions, texts: int) -> Tensor:
    """Mean over texts of a text's mean max(0, p_t - p_t+1), where the label is set."""
    rows = at[0]
    inside = rows[:-1] == rows[1:]
    falls = (scores[:-1] - scores[1:]).clamp_min(0) * (labels[1:] >= 0.5)
    steps = inside.new_zeros(texts, dtype=scores.dtype).index_add(0, rows[1:], inside.to(scores))
    return (falls.mean(-1) * inside / steps[rows[1:]].clamp_min(1)).sum() / texts
