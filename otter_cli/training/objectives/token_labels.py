"""Labels of single tokens, from marked characters of a text (`token-labels`).

Every token is scored from the text up to it, so a span is judged before its end is seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, PositiveFloat

from otter_cli.core.errors import OtterError
from otter_cli.core.intervals import Interval, interval, mean, ratio
from otter_cli.data.batches import Positions
from otter_cli.data.columns import SPAN_COLUMNS, SampledRows, column_names, usual_column
from otter_cli.data.spans import MarkedText, character_counts, read_marked
from otter_cli.data.tables import TableLike
from otter_cli.signals.config import SignalConfig
from otter_cli.training.objectives.objective import Objective, Outcomes, ReadSignal, TextSource

if TYPE_CHECKING:
    from torch import Tensor

    from otter_cli.data.datasets import Batch
    from otter_cli.data.spans import MarkedDataset


class MarkedSource(TextSource):
    """`spans`: a column of marked characters for each class. By default the columns with the names
    of the signal's labels, or one column with a usual name."""

    spans: tuple[str, ...] | None = None

    def span_columns(self, signal: SignalConfig) -> tuple[str, ...]:
        return self.spans or signal.labels

    def read_columns(self, signal: SignalConfig) -> tuple[str, ...]:
        return (*super().read_columns(signal), *self.span_columns(signal))

    def default_columns(self, rows: SampledRows, signal: SignalConfig) -> dict[str, Any]:
        columns = super().default_columns(rows, signal)
        if self.spans is None and not set(signal.labels) & set(column_names(rows)):
            spans = usual_column("spans", SPAN_COLUMNS, rows, text=False)
            return columns if spans is None else {**columns, "spans": (spans,)}
        return columns


class TokenLabels(Objective):
    """Binary cross-entropy of each label at every token that holds characters of the text.

    `positive_weight` multiplies the loss of labelled tokens. A token counts as predicted at a
    probability of at least `threshold`."""

    kinds: ClassVar[tuple[str, ...]] = ("classes",)

    objective: Literal["token-labels"] = "token-labels"
    eos: bool = False
    train: MarkedSource
    test: MarkedSource | None = None
    positive_weight: PositiveFloat = 1.0
    threshold: float = Field(default=0.5, gt=0, lt=1)

    def read_rows(
        self, source: MarkedSource, table: TableLike, signal: SignalConfig
    ) -> Sequence[MarkedText]:
        columns = source.span_columns(signal)
        if len(columns) != signal.size:
            raise OtterError(
                f"{table}: {len(columns)} columns of spans; signal {signal.name!r} has "
                f"{signal.size} classes: {', '.join(signal.labels)}",
                hint="name one column of spans for each class, such as `spans: [spans]`",
            )
        return read_marked(table, text=source.text, prompt=source.prompt, spans=columns)

    def check_test_rows(self, rows: Sequence[Any], signal: SignalConfig, what: str) -> None:
        for label, marked in zip(signal.labels, _any_marked(rows), strict=True):
            if not marked:
                raise OtterError(
                    f"signal {signal.name}: no {what} row has a character marked as {label!r}, "
                    "so precision and recall are undefined",
                    hint="give more rows, or another split",
                )

    def encode(self, rows: Sequence[MarkedText], tokenizer: Any, max_length: int) -> MarkedDataset:
        from otter_cli.data.encoding import Encoder
        from otter_cli.data.spans import MarkedDataset

        return MarkedDataset(rows, Encoder(tokenizer, max_length, eos=self.eos, keep="start"))

    def loss(self, read: ReadSignal, batch: Batch) -> Tensor:
        import torch.nn.functional as F

        assert batch.token_labels is not None
        at = _labelled_tokens(batch.token_labels)
        labels = batch.token_labels[at]
        weight = labels.new_full((labels.shape[1],), self.positive_weight)
        logits = read(batch, at)
        return F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weight)

    def outcomes(self, read: ReadSignal, batch: Batch) -> dict[str, Tensor]:
        assert batch.token_labels is not None
        assert batch.labels is not None
        at = _labelled_tokens(batch.token_labels)
        predicted = batch.token_labels.new_zeros(batch.token_labels.shape)
        predicted[at] = (read(batch, at).sigmoid() >= self.threshold).float()
        total, marked = character_counts(batch, predicted)
        return {"predicted": total, "correct": marked, "marked": batch.labels}

    def metrics(self, outcomes: Outcomes, signal: SignalConfig) -> dict[str, Interval]:
        """F1 of characters as SemEval-2021 task 5 defines it: the mean over texts of each text's
        F1, which is 1 where no character is marked and none predicted. Precision and recall are of
        all characters together."""
        metrics = {}
        for column, label in enumerate(signal.labels):
            predicted, correct, marked = (
                outcomes[name][:, column].astype(float)
                for name in ("predicted", "correct", "marked")
            )
            both = predicted + marked
            each = np.divide(2 * correct, both, out=np.ones_like(both), where=both > 0)
            statistics = {
                "char_f1": mean(each),
                "char_precision": ratio(correct, predicted),
                "char_recall": ratio(correct, marked),
            }
            suffix = f"/{label}" if signal.size > 1 else ""
            for name, statistic in statistics.items():
                if name == "char_precision" and not predicted.any():
                    continue  # Nothing was predicted, so it has no value.
                what = f"{name} of {signal.name}{suffix}"
                metrics[name + suffix] = interval(statistic, len(both), what=what)
        return metrics


def _labelled_tokens(labels: Tensor) -> Positions:
    """The positions that hold characters of the text."""
    rows, columns = (labels[..., 0] >= 0).nonzero(as_tuple=True)
    return rows, columns


def _any_marked(rows: Sequence[MarkedText]) -> list[bool]:
    by_class = zip(*(row.characters for row in rows), strict=True)
    return [any(characters) for characters in by_class]
