"""The baselines, by the names that `--baseline` takes. Data, steps and batches are the insertion's.

docs/method.md, "Comparators", has the list. To add one, write a class or a function with the
signature of `MakeBaseline` in a module here, enter it in `BASELINES`, and give it a name and
settings in `training/recipe.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from otter_cli.core.errors import OtterError
from otter_cli.signals.config import SignalConfig
from otter_cli.training.baselines.lora import (
    LoraClassifierTrainable,
    LoraLanguageModelTrainable,
    LoraProbeTrainable,
)
from otter_cli.training.baselines.readouts import (
    graft_heads,
    make_mha_probe,
    make_probe,
    make_reward_channel,
    make_wide,
)
from otter_cli.training.baselines.separate import make_branch, make_separate, make_small
from otter_cli.training.recipe import BaselineName, Recipe
from otter_cli.training.signal_data import graft_signals
from otter_cli.training.trainable import GraftTrainable, Trainable

# From the grafted folder, the folder of the baseline, the signal, the recipe and the device.
MakeBaseline = Callable[[Path, Path, SignalConfig, Recipe, str], Trainable]
BASELINES: Mapping[BaselineName, MakeBaseline] = {
    "probe": make_probe,
    "mha-probe": make_mha_probe,
    "reward-channel": make_reward_channel,
    "branch": make_branch,
    "lora": LoraClassifierTrainable,
    "lora-probe": LoraProbeTrainable,
    "small": make_small,
    "separate": make_separate,
    "wide": make_wide,
    "language-model": LoraLanguageModelTrainable,
}


def make_trainable(
    folder: Path, recipe: Recipe, baseline: BaselineName | None, to: Path | None, device: str
) -> Trainable:
    """The graft itself, or a baseline for it in `to`, which is created where it does not exist."""
    if baseline is None:
        return GraftTrainable(folder, recipe, device)
    assert to is not None
    signals = graft_signals(folder, recipe)
    if baseline == "head":
        return GraftTrainable(graft_heads(folder, to, tuple(signals.values())), recipe, device)
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
    (signal,) = signals.values()
    return BASELINES[baseline](folder, to, signal, recipe, device)
