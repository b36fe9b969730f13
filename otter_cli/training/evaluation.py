"""Held-out figures of a signal, each with n and an interval, and early stopping by one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from otter_cli.core.errors import OtterError, closest
from otter_cli.core.intervals import Interval, interval, mean
from otter_cli.data.batches import longest_first_batches
from otter_cli.signals.config import SignalConfig
from otter_cli.signals.finite import non_finite_error
from otter_cli.training.distributed import ProcessGroup
from otter_cli.training.objectives.objective import Objective, ReadSignal

if TYPE_CHECKING:
    from torch import Tensor

    from otter_cli.data.datasets import Batch, Dataset
    from otter_cli.training.recipe import Recipe


KLToBase = Callable[["Batch"], "Tensor | None"]
KL_TO_BASE = "kl_to_base"


def row_outcomes(
    objective: Objective,
    read: ReadSignal,
    dataset: Dataset,
    batch_size: int,
    device: str = "cpu",
    group: ProcessGroup | None = None,
    drift: KLToBase = lambda batch: None,
) -> dict[str, np.ndarray]:
    """What the objective notes of each row, in the data's order: two methods can be paired; and the
    drift of its texts, where there can be any. Raises OtterError for what is not finite: compared,
    it would pass for a wrong answer."""
    group = group or ProcessGroup()
    batches = longest_first_batches(dataset.lengths, batch_size)
    # Each process takes every so-manieth; one that has none left repeats the last, since all must
    # run the base equally often where they hold shards of it.
    rounds = -(-len(batches) // group.size)
    mine = [batches[min(i * group.size + group.rank, len(batches) - 1)] for i in range(rounds)]
    own = []
    with torch.no_grad():
        for rows in mine:
            batch = dataset.batch(rows).to(device)
            of_rows = objective.outcomes(read, batch)
            if (of_texts := drift(batch)) is not None:
                of_rows = {**of_rows, KL_TO_BASE: of_texts.view(-1, len(rows)).mean(0)}
            own.append({name: tensor.cpu().numpy() for name, tensor in of_rows.items()})
    everyones = zip(*group.gather(own), strict=True)
    found = [part for of_round in everyones for part in of_round][: len(batches)]
    for name in found[0]:
        if not all(np.isfinite(part[name]).all() for part in found):
            raise non_finite_error(f"the {name} of a held-out row")
    order = np.argsort(np.concatenate([np.asarray(rows) for rows in batches]))
    return {name: np.concatenate([part[name] for part in found])[order] for name in found[0]}


def evaluate(
    objective: Objective,
    signal: SignalConfig,
    read: ReadSignal,
    dataset: Dataset,
    batch_size: int,
    device: str = "cpu",
    group: ProcessGroup | None = None,
    drift: KLToBase = lambda batch: None,
) -> dict[str, Interval]:
    found = row_outcomes(objective, read, dataset, batch_size, device, group, drift)
    metrics = objective.metrics(found, signal)
    if KL_TO_BASE in found:
        metrics[KL_TO_BASE] = interval(mean(found[KL_TO_BASE]), len(found[KL_TO_BASE]))
    return metrics


@dataclass
class EarlyStopping:
    """`step` of the best evaluation, its `figure`, and how many came `since`; of a recipe without
    `best` none is chosen."""

    recipe: Recipe
    step: int | None = None
    figure: float | None = None
    since: int = 0

    @property
    def wanted(self) -> bool:
        return self.recipe.best is not None

    @property
    def stopped(self) -> bool:
        return self.recipe.patience is not None and self.since >= self.recipe.patience

    def see(self, step: int, metrics: Mapping[str, Mapping[str, Interval]]) -> bool:
        """Whether this evaluation is better than all before it."""
        assert self.recipe.best is not None
        signal, _, metric = self.recipe.best.partition("/")
        figures = metrics[signal]
        if metric not in figures:
            near = closest(metric, figures)
            raise OtterError(
                f"best: {signal} has no metric {metric!r}",
                hint=(f"did you mean {near!r}? " if near else "") + f"it has {', '.join(figures)}",
            )
        figure = figures[metric].mean
        smaller_is_better = metric.startswith(("squared_error", "nats"))
        gain = 0.0 if self.figure is None else figure - self.figure
        if self.figure is None or (gain < 0 if smaller_is_better else gain > 0):
            self.step, self.figure, self.since = step, figure, 0
            return True
        self.since += 1
        return False

    def notes(self) -> dict[str, Any]:
        return {"step": self.step, "figure": self.figure, "since": self.since}

    def recall(self, notes: Mapping[str, Any]) -> None:
        self.step, self.figure, self.since = notes["step"], notes["figure"], notes["since"]
