"""The controls: heads on the frozen final state, and a separate model; same data, same steps."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.core.errors import OtterError
from otter_cli.families import base_shape
from otter_cli.insertion import Manifest, Plan, graft, resolve
from otter_cli.training.recipe import Recipe
from otter_cli.training.separate import SeparateTrainee, create_separate
from otter_cli.training.trainee import GraftTrainee, Trainee, check_signals

Baseline = Literal["head", "separate"]


def make_trainee(
    folder: Path, recipe: Recipe, baseline: Baseline | None, to: Path | None, device: str
) -> Trainee:
    """The graft itself, or a baseline for it in `to`, which is made where it does not exist."""
    if baseline is None:
        return GraftTrainee(folder, recipe, device)
    manifest = Manifest.read(folder)
    signals = {s.name: s for config in manifest.insertions for s in config.signals}
    check_signals(recipe, signals, folder)
    assert to is not None
    if baseline == "head":
        if not to.exists():
            _graft_heads(folder, to, manifest, recipe)
        return GraftTrainee(to, recipe, device)
    if len(recipe.signals) != 1:
        raise OtterError(
            f"a separate model gives one signal; the recipe trains {', '.join(recipe.signals)}",
            hint="choose one with --signal NAME",
        )
    (name,) = recipe.signals
    if not to.exists():
        create_separate(folder, to, signals[name])
    return SeparateTrainee(to, signals[name], device)


def _graft_heads(folder: Path, to: Path, manifest: Manifest, recipe: Recipe) -> None:
    """Task head only: an insertion without a stream, D = 0, with the recipe's signals."""
    base = Checkpoint.open(folder)
    shape = base_shape(base.config)
    signals = [s for config in manifest.insertions for s in config.signals]
    config = resolve(shape, hidden=0, signals=tuple(s for s in signals if s.name in recipe.signals))
    record = manifest.base
    graft(base, to, Plan(config, shape), source=record.source, revision=record.revision)
