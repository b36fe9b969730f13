"""Multi-label classification of texts, at their end or while they are being written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import field_validator

from otter_cli.core.errors import OtterError
from otter_cli.core.intervals import Interval, auroc, f1, interval, mean
from otter_cli.data.labelled import LabelledText, read_labelled
from otter_cli.signals import SignalConfig
from otter_cli.training.objectives.objective import (
    Objective,
    Read,
    Source,
    growing_weights,
    last_tokens,
    real_tokens,
)

if TYPE_CHECKING:
    from torch import Tensor

    from otter_cli.data.datasets import Batch, Labelled


class LabelledSource(Source):
    """Columns of labelled text: by default the labels are columns named as the signal's are.

    `mapping` turns a column's values into numbers: {"0": 1, "1": 1, "2": 0}.
    """

    text: str = "text"
    labels: tuple[str, ...] | None = None
    mapping: dict[str, float | tuple[float, ...]] | None = None

    @field_validator("mapping", mode="before")
    @classmethod
    def _keys_are_texts(cls, mapping: Any) -> Any:
        # YAML reads `0: 1` as a number; a file's column has the text "0".
        return {str(key): v for key, v in mapping.items()} if isinstance(mapping, dict) else mapping


class Classification(Objective):
    """Binary cross-entropy of each label at the last token; or at every one, with weights that
    grow with position, and texts that weigh the same whatever their length."""

    kinds: ClassVar[tuple[str, ...]] = ("classes",)

    objective: Literal["classification"] = "classification"
    positions: Literal["last", "every"] = "last"
    train: LabelledSource
    test: LabelledSource | None = None

    @property
    def sources(self) -> tuple[LabelledSource, LabelledSource | None]:
        return self.train, self.test

    def rows(
        self, source: LabelledSource, path: Path, signal: SignalConfig
    ) -> Sequence[LabelledText]:
        rows = read_labelled(
            path,
            text=source.text,
            labels=source.labels or signal.labels,
            mapping=source.mapping,
            limit=source.limit,
        )
        found = len(rows[0].labels)
        if found != signal.size:
            raise OtterError(
                f"{path}: {found} labels a text; signal {signal.name!r} has {signal.size}: "
                + ", ".join(signal.labels),
                hint="name as many label columns (or mapped numbers) as the signal has classes",
            )
        return rows

    def encode(self, rows: Sequence[LabelledText], tokenizer: Any, max_length: int) -> Labelled:
        from otter_cli.data.datasets import Labelled
        from otter_cli.data.encoding import Encoder

        return Labelled(rows, Encoder(tokenizer, max_length, eos=self.eos))

    def loss(self, read: Read, batch: Batch) -> Tensor:
        import torch.nn.functional as F

        assert batch.labels is not None
        if self.positions == "last":
            return F.binary_cross_entropy_with_logits(read(batch, last_tokens(batch)), batch.labels)
        rows, columns = real_tokens(batch)
        each = F.binary_cross_entropy_with_logits(
            read(batch, (rows, columns)), batch.labels[rows], reduction="none"
        ).mean(-1)
        return (each * growing_weights(columns, batch.last[rows])).sum() / len(batch.last)

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
