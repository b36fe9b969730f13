"""Metrics of a signal on held-out rows, with n and intervals, and early stopping by one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from otter_cli.core.errors import OtterError, did_you_mean
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


def evaluate(
    objective: Objective,
    signal: SignalConfig,
    read: ReadSignal,
    dataset: Dataset,
    batch_size: int,
    device: str = "cpu",
    group: ProcessGroup | None = None,
    kl_to_base: KLToBase = lambda batch: None,
) -> dict[str, Interval]:
    """The objective's metrics on all rows, and `kl_to_base` where training can change the base.

    Raises OtterError for a value that is not finite: a comparison would count it as wrong."""
    group = group or ProcessGroup()
    batches = longest_first_batches(dataset.lengths, batch_size)
    # Process r takes batches r, r + size, ... Where no batch is left it repeats the last one: with
    # a sharded base all processes must run the same number of forwards.
    rounds = -(-len(batches) // group.size)
    own = [batches[min(i * group.size + group.rank, len(batches) - 1)] for i in range(rounds)]
    own_parts = []
    with torch.no_grad():
        for rows in own:
            batch = dataset.batch(rows).to(device)
            tensors = objective.outcomes(read, batch)
            if (kl := kl_to_base(batch)) is not None:
                tensors = {**tensors, KL_TO_BASE: kl.view(-1, len(rows)).mean(0)}
            own_parts.append({name: tensor.cpu().numpy() for name, tensor in tensors.items()})
    by_round = zip(*group.all_gather(own_parts), strict=True)
    parts = [part for each_process in by_round for part in each_process][: len(batches)]
    # The rows in the order of the data.
    order = np.argsort(np.concatenate([np.asarray(rows) for rows in batches]))
    outcomes = {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}
    for name, values in outcomes.items():
        if not np.isfinite(values).all():
            raise non_finite_error(f"the {name} of a held-out row")
    metrics = objective.metrics(outcomes, signal)
    if KL_TO_BASE in outcomes:
        metrics[KL_TO_BASE] = interval(mean(outcomes[KL_TO_BASE]), len(outcomes[KL_TO_BASE]))
    return metrics


@dataclass
class EarlyStopping:
    """The best evaluation so far by the recipe's `best`, and how many came after it. A recipe
    without `best` chooses none."""

    recipe: Recipe
    best_step: int | None = None
    best_value: float | None = None
    evaluations_since: int = 0

    @property
    def enabled(self) -> bool:
        return self.recipe.best is not None

    @property
    def should_stop(self) -> bool:
        patience = self.recipe.patience
        return patience is not None and self.evaluations_since >= patience

    def update(self, step: int, metrics: Mapping[str, Mapping[str, Interval]]) -> bool:
        """Whether this evaluation is better than all before it. Raises OtterError where `best`
        names no metric of its signal."""
        assert self.recipe.best is not None
        signal, _, metric = self.recipe.best.partition("/")
        if metric not in metrics[signal]:
            raise OtterError(
                f"best: {signal} has no metric {metric!r}",
                hint=did_you_mean(metric, metrics[signal]) + f"it has {', '.join(metrics[signal])}",
            )
        value = metrics[signal][metric].mean
        smaller_is_better = metric.startswith(("squared_error", "nats"))
        gain = 0.0 if self.best_value is None else value - self.best_value
        if self.best_value is None or (gain < 0 if smaller_is_better else gain > 0):
            self.best_step, self.best_value, self.evaluations_since = step, value, 0
            return True
        self.evaluations_since += 1
        return False

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.best_step,
            "figure": self.best_value,
            "since": self.evaluations_since,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best_step, self.best_value = state["step"], state["figure"]
        self.evaluations_since = state["since"]
