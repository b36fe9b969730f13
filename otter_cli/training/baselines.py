"""The controls: heads on the frozen final state, and a separate model; same data, same steps."""

from __future__ import annotations

from pathlib import Path

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.core.errors import OtterError
from otter_cli.families import base_shape
from otter_cli.insertion import Manifest, Plan, graft, resolve
from otter_cli.signals import SignalConfig
from otter_cli.training.recipe import Baseline, Recipe
from otter_cli.training.separate import SeparateTrainee, create_separate
from otter_cli.training.targets import graft_signals
from otter_cli.training.trainee import GraftTrainee, Trainee


def make_trainee(
    folder: Path, recipe: Recipe, baseline: Baseline | None, to: Path | None, device: str
) -> Trainee:
    """The graft itself, or a baseline for it in `to`, which is made where it does not exist."""
    if baseline is None:
        return GraftTrainee(folder, recipe, device)
    assert to is not None
    signals = graft_signals(folder, recipe)
    if baseline == "head":
        if not to.exists():
            _graft_heads(folder, to, tuple(signals.values()))
        return GraftTrainee(to, recipe, device)
    if len(signals) != 1:
        raise OtterError(
            f"a separate model gives one signal; the recipe trains {', '.join(signals)}",
            hint="choose one with --signal NAME",
        )
    (signal,) = signals.values()
    if not to.exists():
        create_separate(folder, to, signal)
    return SeparateTrainee(to, signal, device)


def _graft_heads(folder: Path, to: Path, signals: tuple[SignalConfig, ...]) -> None:
    """Task head only: an insertion without a stream, D = 0, on the same base."""
    base, record = Checkpoint.open(folder), Manifest.read(folder).base
    shape = base_shape(base.config)
    plan = Plan(resolve(shape, hidden=0, signals=signals), shape)
    graft(base, to, plan, source=record.source, revision=record.revision)
