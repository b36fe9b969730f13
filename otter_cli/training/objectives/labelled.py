"""Objectives of labelled texts: values (`pointwise`) and classes (`classification`).

The loss is at the last token, or at every token with growing weights (docs/method.md,
"Objectives")."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import NonNegativeFloat, field_validator, model_validator

from otter_cli.core.errors import OtterError
from otter_cli.core.intervals import (
    Interval,
    Share,
    Statistic,
    auroc,
    correlation,
    f1,
    interval,
    mean,
)
from otter_cli.data.batches import Positions, last_tokens, real_tokens, weighted_mean_over_texts
from otter_cli.data.columns import LABEL_COLUMNS, SampledRows, column_names, usual_column
from otter_cli.data.tables import TableLike
from otter_cli.data.texts import LabelledText, read_labelled
from otter_cli.signals.config import SignalConfig
from otter_cli.training.objectives.objective import (
    Objective,
    Outcomes,
    ReadSignal,
    TextSource,
    read_selected,
)

if TYPE_CHECKING:
    from torch import Tensor

    from otter_cli.data.datasets import Batch, LabelledDataset


class LabelledSource(TextSource):
    """Columns of labelled texts. `labels`: by default the columns with the names of the signal's
    labels, or one column with a usual name. For a signal with several classes one column may name
    the class: by name, by number from 0, as a truth value, or as a list of names.

    `mapping` turns a column's values into numbers: {"0": 1, "1": 1, "2": 0}.
    """

    labels: tuple[str, ...] | None = None
    mapping: dict[str, float | tuple[float, ...]] | None = None

    @property
    def start_column(self) -> str | None:
        """The column that says from which character on the labels hold."""
        return getattr(self, "since", None)

    def label_columns(self, signal: SignalConfig) -> tuple[str, ...]:
        return self.labels or signal.labels or (signal.name,)

    def read_columns(self, signal: SignalConfig) -> tuple[str, ...]:
        start = (self.start_column,) if self.start_column else ()
        return (*super().read_columns(signal), *self.label_columns(signal), *start)

    def default_columns(self, rows: SampledRows, signal: SignalConfig) -> dict[str, Any]:
        columns = super().default_columns(rows, signal)
        if self.labels is None and not {signal.name, *signal.labels} & set(column_names(rows)):
            label = usual_column("labels", LABEL_COLUMNS, rows, text=False)
            return columns if label is None else {**columns, "labels": (label,)}
        return columns

    @field_validator("mapping", mode="before")
    @classmethod
    def _keys_are_texts(cls, mapping: Any) -> Any:
        # YAML reads `0: 1` as a number; a file's column has the text "0".
        return {str(key): v for key, v in mapping.items()} if isinstance(mapping, dict) else mapping


class LabelledObjective(Objective, ABC):
    """Reads texts with as many numbers as the signal has attributes or classes."""

    train: LabelledSource
    test: LabelledSource | None = None

    def label_count(self, signal: SignalConfig) -> int:
        """How many labels a text has."""
        return signal.size

    def read_rows(
        self, source: LabelledSource, table: TableLike, signal: SignalConfig
    ) -> Sequence[LabelledText]:
        rows = read_labelled(
            table,
            text=source.text,
            prompt=source.prompt,
            labels=source.label_columns(signal),
            mapping=source.mapping,
            classes=signal.labels if signal.kind == "classes" else (),
            since=source.start_column,
        )
        count, expected = len(rows[0].labels), self.label_count(signal)
        if count != expected:
            raise OtterError(
                f"{table}: {count} labels a text; signal {signal.name!r} has {expected}: "
                + ", ".join(signal.labels or (signal.name,)),
                hint="name as many label columns (or mapped numbers) as the signal has classes",
            )
        return rows

    def encode(
        self, rows: Sequence[LabelledText], tokenizer: Any, max_length: int
    ) -> LabelledDataset:
        from otter_cli.data.datasets import LabelledDataset
        from otter_cli.data.encoding import Encoder

        return LabelledDataset(rows, Encoder(tokenizer, max_length, eos=self.eos))


ValueLoss = Literal["squared", "cross-entropy"]


class Pointwise(LabelledObjective):
    """Squared error of each attribute, or cross-entropy with the score as a logit. At every prefix
    weights grow with position (RAD, arXiv 2310.09520, 3.1)."""

    kinds: ClassVar[tuple[str, ...]] = ("value",)

    objective: Literal["pointwise"] = "pointwise"
    loss_of: ValueLoss = "squared"
    positions: Literal["last", "every"] = "every"

    def check_test_rows(self, rows: Sequence[Any], signal: SignalConfig, what: str) -> None:
        check_labels_vary([row.labels for row in rows], signal, what)

    def loss(self, read: ReadSignal, batch: Batch) -> Tensor:
        assert batch.labels is not None
        at = last_tokens(batch) if self.positions == "last" else real_tokens(batch)
        scores = _with_attribute_axis(read_selected(read, batch, at))
        each = value_errors(self.loss_of, scores, batch.labels[at[0]]).mean(-1)
        if self.positions == "last":
            return each.mean()
        return weighted_mean_over_texts(each, at, batch.last)

    def outcomes(self, read: ReadSignal, batch: Batch) -> dict[str, Tensor]:
        assert batch.labels is not None
        score = _with_attribute_axis(read(batch, last_tokens(batch)))
        return {
            "value": score if self.loss_of == "squared" else score.sigmoid(),
            "label": batch.labels,
        }

    def metrics(self, outcomes: Outcomes, signal: SignalConfig) -> dict[str, Interval]:
        return value_metrics(outcomes["value"], outcomes["label"], signal.labels)


def value_metrics(
    value: np.ndarray, label: np.ndarray, names: tuple[str, ...]
) -> dict[str, Interval]:
    """Mean squared error and correlation of each attribute; arguments are [rows, attributes]."""
    metrics = {}
    for column in range(value.shape[1]):
        suffix = f"/{names[column]}" if len(names) > 1 else ""
        predicted, true = value[:, column].astype(float), label[:, column].astype(float)
        error = mean((predicted - true) ** 2)
        metrics[f"squared_error{suffix}"] = interval(error, len(predicted))
        what = f"the correlation{suffix} of value and label"
        metrics[f"correlation{suffix}"] = interval(
            correlation_or_zero(predicted, true), len(predicted), what=what
        )
    return metrics


def check_labels_vary(labels: Sequence[Sequence[float]], signal: SignalConfig, what: str) -> None:
    """Raises OtterError where an attribute is equal in all rows: correlation is undefined there."""
    for column, values in enumerate(zip(*labels, strict=True)):
        if len(set(values)) < 2:
            name = signal.labels[column] if len(signal.labels) > 1 else signal.name
            raise OtterError(
                f"signal {signal.name}: {name!r} is {values[0]:g} in all {len(values)} {what} "
                "rows, and the correlation of value and label needs two different labels",
                hint="give more rows, or another split",
            )


def correlation_or_zero(value: np.ndarray, label: np.ndarray) -> Statistic:
    """The correlation; 0 for a signal that is constant, as an untrained one is."""
    if np.ptp(value) > 0:
        return correlation(value, label)
    return lambda counts: np.zeros(len(counts))


def value_errors(loss: ValueLoss, scores: Tensor, labels: Tensor) -> Tensor:
    """The loss of each score, of the shape of both arguments."""
    import torch.nn.functional as F

    if loss == "squared":
        return (scores - labels) ** 2
    return F.binary_cross_entropy_with_logits(scores, labels, reduction="none")


def _with_attribute_axis(scores: Tensor) -> Tensor:
    """[N, attributes], also for a single attribute."""
    return scores[:, None] if scores.ndim == 1 else scores


class SpanSource(LabelledSource):
    """`since`: a column with the first character that the labels hold for, or nothing."""

    since: str | None = None


class Classification(LabelledObjective):
    """Binary cross-entropy of each label at the last token, or at every token with growing weights,
    so that texts weigh the same whatever their length. Where the data say from which character on
    a label holds (`since`), earlier tokens have label 0.

    `consistency`, with `positions: every`: the weight of `max(0, p_t - p_t+1)` where the label is
    set: what was flagged stays flagged (docs/method.md, "Objectives")."""

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

    def check_test_rows(self, rows: Sequence[Any], signal: SignalConfig, what: str) -> None:
        """AUROC needs rows with each label, and rows without it."""
        for column, label in enumerate(signal.labels):
            count = sum(row.labels[column] >= 0.5 for row in rows)
            if count in (0, len(rows)):
                raise OtterError(
                    f"signal {signal.name}: {'none' if count == 0 else 'all'} of the {len(rows)} "
                    f"{what} rows have label {label!r}, and AUROC needs both kinds",
                    hint="give more rows, another split, or more of the rare class",
                )

    def loss(self, read: ReadSignal, batch: Batch) -> Tensor:
        import torch.nn.functional as F

        assert batch.labels is not None
        if self.positions == "last":
            logits = read_selected(read, batch, last_tokens(batch))
            return F.binary_cross_entropy_with_logits(logits, batch.labels)
        at = real_tokens(batch)
        logits, labels = read(batch, at), batch.labels[at[0]]
        if batch.label_start is not None:
            labels = labels * (at[1] >= batch.label_start[at[0]])[:, None]
        each = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(-1)
        loss = weighted_mean_over_texts(each, at, batch.last)
        if self.consistency:
            loss = loss + self.consistency * _score_drops(
                logits.sigmoid(), labels, at, len(batch.last)
            )
        return loss

    def outcomes(self, read: ReadSignal, batch: Batch) -> dict[str, Tensor]:
        assert batch.labels is not None
        return {"score": read(batch, last_tokens(batch)), "label": batch.labels}

    def metrics(self, outcomes: Outcomes, signal: SignalConfig) -> dict[str, Interval]:
        truth, metrics = outcomes["label"] >= 0.5, {}
        for column, label in enumerate(signal.labels):
            score, true = outcomes["score"][:, column], truth[:, column]
            statistics: dict[str, Statistic] = {
                "auroc": auroc(score, true),
                "f1": f1(score > 0, true),
                "accuracy": Share((score > 0) == true),
            }
            suffix = f"/{label}" if signal.size > 1 else ""
            for name, statistic in statistics.items():
                what = f"{name} of {signal.name}{suffix}"
                metrics[name + suffix] = interval(statistic, len(true), what=what)
        return metrics


def _score_drops(scores: Tensor, labels: Tensor, at: Positions, texts: int) -> Tensor:
    """Mean over texts of a text's mean max(0, p_t - p_t+1), where the label is set."""
    rows = at[0]
    same_text = rows[:-1] == rows[1:]
    drops = (scores[:-1] - scores[1:]).clamp_min(0) * (labels[1:] >= 0.5)
    steps = scores.new_zeros(texts).index_add(0, rows[1:], same_text.to(scores))
    return (drops.mean(-1) * same_text / steps[rows[1:]].clamp_min(1)).sum() / texts
