"""Held-out figures of a signal, each with n and an interval."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from otter_cli.core.intervals import Interval, interval, mean
from otter_cli.data.batches import by_length
from otter_cli.signals import SignalConfig
from otter_cli.signals.finite import not_finite
from otter_cli.training.group import Group
from otter_cli.training.objectives import Objective, Read

if TYPE_CHECKING:
    from torch import Tensor

    from otter_cli.data.datasets import Batch, Dataset

Drift = Callable[["Batch"], "Tensor | None"]
DRIFT = "kl_to_base"


def outcomes(
    objective: Objective,
    read: Read,
    dataset: Dataset,
    batch_size: int,
    device: str = "cpu",
    group: Group | None = None,
    drift: Drift = lambda batch: None,
) -> dict[str, np.ndarray]:
    """What the objective notes of each row, in the data's order: two methods can be paired; and the
    drift of its texts, where there can be any. Raises OtterError for what is not finite: compared,
    it would pass for a wrong answer."""
    group = group or Group()
    batches = by_length(dataset.lengths, batch_size)
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
                of_rows = {**of_rows, DRIFT: of_texts.view(-1, len(rows)).mean(0)}
            own.append({name: tensor.cpu().numpy() for name, tensor in of_rows.items()})
    everyones = zip(*group.gather(own), strict=True)
    found = [part for of_round in everyones for part in of_round][: len(batches)]
    for name in found[0]:
        if not all(np.isfinite(part[name]).all() for part in found):
            raise not_finite(f"the {name} of a held-out row")
    order = np.argsort(np.concatenate([np.asarray(rows) for rows in batches]))
    return {name: np.concatenate([part[name] for part in found])[order] for name in found[0]}


def evaluate(
    objective: Objective,
    signal: SignalConfig,
    read: Read,
    dataset: Dataset,
    batch_size: int,
    device: str = "cpu",
    group: Group | None = None,
    drift: Drift = lambda batch: None,
) -> dict[str, Interval]:
    found = outcomes(objective, read, dataset, batch_size, device, group, drift)
    metrics = objective.metrics(found, signal)
    if DRIFT in found:
        metrics[DRIFT] = interval(mean(found[DRIFT]), len(found[DRIFT]))
    return metrics
