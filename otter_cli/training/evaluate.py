"""Held-out figures of a signal, each with n and an interval."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from otter_cli.core.intervals import Interval
from otter_cli.data.batches import by_length
from otter_cli.signals import SignalConfig
from otter_cli.training.objectives import Objective, Read

if TYPE_CHECKING:
    from otter_cli.data.datasets import Dataset


def outcomes(
    objective: Objective, read: Read, dataset: Dataset, batch_size: int, device: str = "cpu"
) -> dict[str, np.ndarray]:
    """What the objective notes of each row, in the data's order: two methods can be paired."""
    batches = by_length(dataset.lengths, batch_size)
    found = []
    with torch.no_grad():
        for rows in batches:
            of_rows = objective.outcomes(read, dataset.batch(rows).to(device))
            found.append({name: tensor.cpu().numpy() for name, tensor in of_rows.items()})
    order = np.argsort(np.concatenate([np.asarray(rows) for rows in batches]))
    return {name: np.concatenate([part[name] for part in found])[order] for name in found[0]}


def evaluate(
    objective: Objective,
    signal: SignalConfig,
    read: Read,
    dataset: Dataset,
    batch_size: int,
    device: str = "cpu",
) -> dict[str, Interval]:
    return objective.metrics(outcomes(objective, read, dataset, batch_size, device), signal)
