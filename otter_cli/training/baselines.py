"""The controls, from heads on the frozen final state to a separate model; same data, same steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.core.errors import OtterError
from otter_cli.families import base_shape
from otter_cli.insertion import Manifest, Plan, graft, resolve
from otter_cli.signals import HEADS, SignalConfig
from otter_cli.training.controls import Baseline
from otter_cli.training.lora import LoraTrainee
from otter_cli.training.lora_language_model import LoraLanguageModelTrainee
from otter_cli.training.lora_probe import LoraProbeTrainee
from otter_cli.training.probe import ProbeTrainee
from otter_cli.training.recipe import Recipe
from otter_cli.training.separate import HEAD, SeparateTrainee, create_separate
from otter_cli.training.targets import graft_signals
from otter_cli.training.trainee import GraftTrainee, Trainee
from otter_cli.training.wide_heads import WideHeadsTrainee, inserted_parameters


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
    _check_baseline(baseline, recipe, list(signals))
    (signal,) = signals.values()
    if baseline == "probe":
        untouched = recipe.signals[signal.name].untouched(signal)
        return ProbeTrainee(folder, to, signal, recipe.baselines.probe.reads, untouched, device)
    if baseline == "wide":
        width = recipe.baselines.wide.width
        if signal.kind == "future" and signal.width != 0:
            if not to.exists():
                _graft_heads(folder, to, (_wider(folder, signal, width),))
            return GraftTrainee(to, recipe, device)
        return WideHeadsTrainee(folder, to, signal, width, recipe.seed, device)
    if baseline == "lora-probe":
        settings = recipe.baselines.lora_probe
        return LoraProbeTrainee(folder, to, signal, settings, recipe.seed, device)
    if baseline == "language-model":
        rank = recipe.baselines.language_model.rank
        return LoraLanguageModelTrainee(folder, to, signal, rank, recipe.seed, device)
    if not to.exists():
        layers = recipe.baselines.small.layers if baseline == "small" else None
        create_separate(folder, to, signal, layers)
    if baseline == "lora":
        rank = recipe.baselines.lora.rank
        return LoraTrainee(folder, to, signal, rank, recipe.seed, device)
    trainee = SeparateTrainee(to, signal, device)
    return trainee.train_only(_of_last_layer(folder)) if baseline == "branch" else trainee


def _check_baseline(baseline: Baseline, recipe: Recipe, signals: Sequence[str]) -> None:
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


def _of_last_layer(folder: Path) -> Callable[[str], bool]:
    """The names of what follows the last but one layer: the base's own is left as it is, since the
    classifier is a copy."""
    shape = base_shape(Checkpoint.open(folder).config)
    last = f"{shape.family.layers}.{shape.layers - 1}."
    return lambda name: name.startswith((last, f"{shape.family.final_norm}.", HEAD))


def _wider(folder: Path, signal: SignalConfig, width: int | None) -> SignalConfig:
    """The signal with a cell, on the base's state alone, that has the graft's parameters."""
    shape = base_shape(Checkpoint.open(folder).config)
    cells = (
        HEADS[signal.kind].shapes(
            signal.model_copy(update={"width": w}), shape.hidden, 0, shape.vocab
        )
        for w in (1, 2)
    )
    one, two = (sum(prod(form) for form in forms.values()) for forms in cells)
    equal = max(1, round((inserted_parameters(folder, shape) - one) / (two - one)) + 1)
    return signal.model_copy(update={"width": width or equal})


def _graft_heads(folder: Path, to: Path, signals: tuple[SignalConfig, ...]) -> None:
    """Task head only: an insertion without a stream, D = 0, on the same base."""
    base, record = Checkpoint.open(folder), Manifest.read(folder).base
    shape = base_shape(base.config)
    plan = Plan(resolve(shape, hidden=0, signals=signals), shape)
    graft(base, to, plan, source=record.source, revision=record.revision)
