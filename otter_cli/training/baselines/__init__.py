"""The baselines, by the names that `--baseline` takes: same data, same steps, same batches.

They go from heads on the frozen final state to a separate model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.core.errors import OtterError
from otter_cli.families.shape import base_shape
from otter_cli.graft.config import resolve_config
from otter_cli.graft.manifest import Manifest
from otter_cli.graft.plan import Plan
from otter_cli.graft.surgery import graft
from otter_cli.signals.config import SignalConfig
from otter_cli.signals.heads import HEADS
from otter_cli.training.baselines.lora import (
    LoraClassifierTrainable,
    LoraLanguageModelTrainable,
    LoraProbeTrainable,
)
from otter_cli.training.baselines.readouts import (
    ProbeTrainable,
    WideHeadsTrainable,
    inserted_parameter_count,
)
from otter_cli.training.baselines.separate import HEAD_WEIGHT, SeparateTrainable, create_separate
from otter_cli.training.recipe import BaselineName, Recipe
from otter_cli.training.signal_data import graft_signals
from otter_cli.training.trainable import GraftTrainable, Trainable


def make_trainable(
    folder: Path, recipe: Recipe, baseline: BaselineName | None, to: Path | None, device: str
) -> Trainable:
    """The graft itself, or a baseline for it in `to`, which is made where it does not exist."""
    if baseline is None:
        return GraftTrainable(folder, recipe, device)
    assert to is not None
    signals = graft_signals(folder, recipe)
    if baseline == "head":
        if not to.exists():
            _graft_heads(folder, to, tuple(signals.values()))
        return GraftTrainable(to, recipe, device)
    _check_baseline(baseline, recipe, list(signals))
    (signal,) = signals.values()
    if baseline == "probe":
        untouched = recipe.signals[signal.name].untouched(signal)
        return ProbeTrainable(folder, to, signal, recipe.baselines.probe.reads, untouched, device)
    if baseline == "wide":
        width = recipe.baselines.wide.width
        if signal.kind == "future" and signal.width != 0:
            if not to.exists():
                _graft_heads(folder, to, (_with_wide_cell(folder, signal, width),))
            return GraftTrainable(to, recipe, device)
        return WideHeadsTrainable(folder, to, signal, width, recipe.seed, device)
    if baseline == "lora-probe":
        settings = recipe.baselines.lora_probe
        return LoraProbeTrainable(folder, to, signal, settings, recipe.seed, device)
    if baseline == "language-model":
        rank = recipe.baselines.language_model.rank
        return LoraLanguageModelTrainable(folder, to, signal, rank, recipe.seed, device)
    if not to.exists():
        layers = recipe.baselines.small.layers if baseline == "small" else None
        create_separate(folder, to, signal, layers)
    if baseline == "lora":
        rank = recipe.baselines.lora.rank
        return LoraClassifierTrainable(folder, to, signal, rank, recipe.seed, device)
    trainee = SeparateTrainable(to, signal, device)
    return trainee.train_only(_in_last_layer(folder)) if baseline == "branch" else trainee


def _check_baseline(baseline: BaselineName, recipe: Recipe, signals: Sequence[str]) -> None:
    """Raises OtterError where a model of its own cannot be what the recipe asks for."""
    if recipe.quantize is not None:
        raise OtterError(
            f"quantize: {recipe.quantize} is for insertions and heads, and {baseline} is neither",
            hint="--set quantize=null trains the baseline on the file's own weights",
        )
    if len(signals) != 1:
        raise OtterError(
            f"a {baseline} baseline gives one signal; the recipe trains {', '.join(signals)}",
            hint="choose one with --signal NAME",
        )


def _in_last_layer(folder: Path) -> Callable[[str], bool]:
    """The names of what follows the last but one layer: the base's own is left as it is, since the
    classifier is a copy."""
    shape = base_shape(Checkpoint.open(folder).config)
    last = f"{shape.family.layers}.{shape.layers - 1}."
    return lambda name: name.startswith((last, f"{shape.family.final_norm}.", HEAD_WEIGHT))


def _with_wide_cell(folder: Path, signal: SignalConfig, width: int | None) -> SignalConfig:
    """The signal with a cell, on the base's state alone, that has the graft's parameters."""
    shape = base_shape(Checkpoint.open(folder).config)
    cells = (
        HEADS[signal.kind].shapes(
            signal.model_copy(update={"width": w}), shape.hidden, 0, shape.vocab
        )
        for w in (1, 2)
    )
    one, two = (sum(prod(form) for form in forms.values()) for forms in cells)
    equal = max(1, round((inserted_parameter_count(folder, shape) - one) / (two - one)) + 1)
    return signal.model_copy(update={"width": width or equal})


def _graft_heads(folder: Path, to: Path, signals: tuple[SignalConfig, ...]) -> None:
    """Task head only: an insertion without a stream, D = 0, on the same base."""
    base, record = Checkpoint.open(folder), Manifest.read(folder).base
    shape = base_shape(base.config)
    plan = Plan(resolve_config(shape, hidden=0, signals=signals), shape)
    graft(base, to, plan, source=record.source, revision=record.revision)
