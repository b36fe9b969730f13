"""Pointwise values: a text's own number, at its end or while it is being written (METHOD, 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from otter_cli.core.errors import OtterError
from otter_cli.core.intervals import Interval, Statistic, correlation, interval, mean
from otter_cli.signals import SignalConfig
from otter_cli.training.objectives.labelled import LabelledObjective
from otter_cli.training.objectives.objective import (
    Read,
    last_tokens,
    read_alone,
    real_tokens,
    weighed_by_text,
)

if TYPE_CHECKING:
    from torch import Tensor

    from otter_cli.data.datasets import Batch

Loss = Literal["squared", "cross-entropy"]


class Pointwise(LabelledObjective):
    """Squared error of each attribute; or cross-entropy, whose score is a logit. At every prefix
    weights grow with position (RAD, arXiv 2310.09520, 3.1)."""

    kinds: ClassVar[tuple[str, ...]] = ("value",)

    objective: Literal["pointwise"] = "pointwise"
    loss_of: Loss = "squared"
    positions: Literal["last", "every"] = "every"

    def check_rows(
        self, rows: Sequence[Any], signal: SignalConfig, what: str, *, tested: bool
    ) -> None:
        if tested:
            check_labels_vary([row.labels for row in rows], signal, what)

    def loss(self, read: Read, batch: Batch) -> Tensor:
        assert batch.labels is not None
        at = last_tokens(batch) if self.positions == "last" else real_tokens(batch)
        scores = _columns(read_alone(read, batch, at))
        each = errors(self.loss_of, scores, batch.labels[at[0]]).mean(-1)
        return each.mean() if self.positions == "last" else weighed_by_text(each, at, batch.last)

    def outcomes(self, read: Read, batch: Batch) -> dict[str, Tensor]:
        assert batch.labels is not None
        score = _columns(read(batch, last_tokens(batch)))
        return {
            "value": score if self.loss_of == "squared" else score.sigmoid(),
            "label": batch.labels,
        }

    def metrics(
        self, outcomes: Mapping[str, np.ndarray], signal: SignalConfig
    ) -> dict[str, Interval]:
        return value_metrics(outcomes["value"], outcomes["label"], signal.labels)


def value_metrics(
    value: np.ndarray, label: np.ndarray, names: tuple[str, ...]
) -> dict[str, Interval]:
    """Mean squared error and correlation of each attribute, [rows, attributes]."""
    found = {}
    for column in range(value.shape[1]):
        suffix = f"/{names[column]}" if len(names) > 1 else ""
        got, true = value[:, column].astype(float), label[:, column].astype(float)
        found[f"squared_error{suffix}"] = interval(mean((got - true) ** 2), len(got))
        what = f"the correlation{suffix} of value and label"
        found[f"correlation{suffix}"] = interval(agreement(got, true), len(got), what=what)
    return found


def check_labels_vary(labels: Sequence[Sequence[float]], signal: SignalConfig, what: str) -> None:
    """Raises OtterError where an attribute is the same in all rows: nothing correlates with it."""
    for column, values in enumerate(zip(*labels, strict=True)):
        if len(set(values)) < 2:
            name = signal.labels[column] if len(signal.labels) > 1 else signal.name
            raise OtterError(
                f"signal {signal.name}: {name!r} is {values[0]:g} in all {len(values)} {what} "
                "rows, and the correlation of value and label needs two different labels",
                hint="give more rows, or another split",
            )


def agreement(value: np.ndarray, label: np.ndarray) -> Statistic:
    """Their correlation; of a signal that is constant, as a new one is, none."""
    if np.ptp(value) > 0:
        return correlation(value, label)
    return lambda counts: np.zeros(len(counts))


def errors(loss: Loss, scores: Tensor, labels: Tensor) -> Tensor:
    """Of each score, the shape of both."""
    import torch.nn.functional as F

    if loss == "squared":
        return (scores - labels) ** 2
    return F.binary_cross_entropy_with_logits(scores, labels, reduction="none")


def _columns(scores: Tensor) -> Tensor:
    """[N, attributes] also where there is one."""
    return scores[:, None] if scores.ndim == 1 else scores
