"""A learning-rate range test (Smith, arXiv 1506.01186, 3.3): the loss while the rate grows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from otter_cli.core.errors import CheckFailed, OtterError
from otter_cli.graft.grafted_folder import open_graft
from otter_cli.training.signal_data import (
    graft_signals,
    load_graft_tokenizer,
    load_signal_data,
    prepare_signal_data,
)

if TYPE_CHECKING:
    from otter_cli.training.loop import TrainingRun
    from otter_cli.training.recipe import Recipe


_LOWEST_RATE, _HIGHEST_RATE = 1e-6, 1.0
# Of an exponential mean of losses, and when it counts as diverged.
_SMOOTHING = 0.9
_DIVERGENCE_FACTOR = 4.0


@dataclass(frozen=True)
class RateSearch:
    """Rates tried, the smoothed loss at each, and the rate at which it fell steepest."""

    rates: list[float]
    losses: list[float]
    suggestion: float


def find_rate(folder: Path, recipe: Recipe, *, steps: int = 60, device: str = "cpu") -> RateSearch:
    """No tensor is written. Raises OtterError where the loss falls at no rate."""
    open_graft(folder)
    signals, tokenizer = graft_signals(folder, recipe), load_graft_tokenizer(folder)
    material = {name: load_signal_data(name, recipe, signals[name], tokenizer) for name in signals}
    prepare_signal_data(material, recipe, folder, device)

    from otter_cli.training.loop import TrainingRun
    from otter_cli.training.state import StateFolder
    from otter_cli.training.trainable import GraftTrainable

    trainee = GraftTrainable(folder, recipe, device)
    run = TrainingRun(trainee, recipe, material, StateFolder(folder), {}, device)
    rates = np.geomspace(_LOWEST_RATE, _HIGHEST_RATE, steps).tolist()
    losses = _sweep(run, rates)
    return RateSearch(rates[: len(losses)], losses, steepest_rate(rates[: len(losses)], losses))


def _sweep(run: TrainingRun, rates: list[float]) -> list[float]:
    """Smoothed losses, up to where they diverge: the last is the first that had."""
    # A rate too small to move anything says nothing of an initialisation.
    run.guard.pending.clear()
    smoothed: list[float] = []
    mean = 0.0
    for number, rate in enumerate(rates, 1):
        try:
            losses = run.take_step(rate)["loss"]
        except CheckFailed:
            break
        total = sum(run.recipe.signals[name].weight * loss for name, loss in losses.items())
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * total
        smoothed.append(mean / (1 - _SMOOTHING**number))
        if smoothed[-1] > _DIVERGENCE_FACTOR * min(smoothed):
            break
    return smoothed


def steepest_rate(rates: list[float], losses: list[float]) -> float:
    """The rate at which the loss falls fastest per factor of the rate, before its lowest point."""
    lowest = int(np.argmin(losses)) if losses else 0
    if lowest < 2:
        raise OtterError(
            f"the loss falls at no learning rate from {_LOWEST_RATE:g} to {_HIGHEST_RATE:g}",
            hint="is the objective right, and are the labels? Try another --init as well",
        )
    slopes = np.gradient(losses[: lowest + 1], np.log(rates[: lowest + 1]))
    return rates[int(np.argmin(slopes))]
