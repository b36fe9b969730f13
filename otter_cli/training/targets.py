"""What a recipe trains of a graft, told from both without loading either."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from otter_cli.core.errors import OtterError
from otter_cli.core.suggest import closest
from otter_cli.insertion import InsertionConfig, Manifest
from otter_cli.signals import SignalConfig

if TYPE_CHECKING:
    from otter_cli.training.recipe import Recipe


def graft_signals(folder: Path, recipe: Recipe) -> dict[str, SignalConfig]:
    """The graft's signals that the recipe trains. Raises OtterError where it lacks one, or has it
    as another kind."""
    manifest = Manifest.read(folder)
    signals = {s.name: s for config in manifest.insertions for s in config.signals}
    for name, objective in recipe.signals.items():
        if name not in signals:
            near = closest(name, signals)
            raise OtterError(
                f"the recipe trains signal {name!r}, which {folder} does not have",
                hint=(f"did you mean {near!r}? " if near else "")
                + f"its signals: {', '.join(signals) or 'none'}",
            )
        objective.check(signals[name])
    return {name: signals[name] for name in recipe.signals}


def trained_names(config: InsertionConfig, recipe: Recipe, parameters: Iterable[str]) -> set[str]:
    """The stream of one insertion and the heads of the recipe's signals, but for parts that a loss
    cannot see."""
    own = f"otter.{config.name}."
    heads = f"{own}signals."
    untouched = {
        f"{heads}{signal.name}.{part}"
        for signal in config.signals
        if signal.name in recipe.signals
        for part in recipe.signals[signal.name].untouched(signal)
    }
    return {
        name
        for name in parameters
        if name.startswith(own)
        and name not in untouched
        and (
            not name.startswith(heads)
            or name.removeprefix(heads).partition(".")[0] in recipe.signals
        )
    }


def without_gradient(config: InsertionConfig) -> frozenset[str]:
    """With zero embeddings the first layer's attention sees u = 0, and always will."""
    if config.embedding == "table" or not config.heads:
        return frozenset()
    first = f"otter.{config.name}.layers.{min(config.layers)}.attention"
    inputs = ("query", "key", "value") if config.kv == "own" else ("query",)
    return frozenset([f"{first}.norm.weight", *(f"{first}.{name}.z.weight" for name in inputs)])


def check_scores_texts(what: str, signal: SignalConfig) -> None:
    """Raises OtterError where a signal is no number of a text."""
    if signal.kind not in ("value", "classes"):
        raise OtterError(
            f"{what} cannot give signal {signal.name!r} of kind {signal.kind}",
            hint="it scores whole texts; name another with --signal, or take another control: "
            "language-model for action values, wide for future tokens",
        )
