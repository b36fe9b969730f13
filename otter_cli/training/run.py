"""`train`: a folder and a recipe in, a trained folder out, whatever happens in between."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otter_cli.core.console import say
from otter_cli.core.errors import OtterError
from otter_cli.core.intervals import Interval
from otter_cli.core.jsonlines import JsonLines
from otter_cli.core.lock import writer_lock
from otter_cli.insertion import TrainingRecord
from otter_cli.training.material import load_material
from otter_cli.training.recipe import Baseline, Recipe
from otter_cli.training.resume import (
    check_same_run,
    forget_after,
    identity_of,
    refuse_unfinished,
)
from otter_cli.training.state import StateFolder
from otter_cli.training.targets import graft_signals

if TYPE_CHECKING:
    from otter_cli.training.loop import Metrics

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class TrainResult:
    """`signals`: held-out figures by signal and metric; `seconds`: of the steps, resumed or not."""

    folder: Path
    signals: dict[str, dict[str, Interval]]
    steps: int
    seconds: float
    trained_parameters: int
    data: dict[str, Any]


def train(
    folder: Path,
    recipe: Recipe,
    *,
    resume: bool = False,
    restart: bool = False,
    baseline: Baseline | None = None,
    to: Path | None = None,
    device: str = "cpu",
) -> TrainResult:
    """Trains the recipe's signals of a grafted folder, or a baseline for it into `to`.

    `resume` goes on from the last saved state, if any; `restart` drops an unfinished run. Raises
    OtterError for bad input, CheckFailed when a guard stops it, KeyboardInterrupt after Ctrl-C.
    """
    target = _target(folder, baseline, to, resume)
    recipe = recipe.for_baseline(baseline)
    states = StateFolder(target)
    if not (resume or restart):
        refuse_unfinished(states)
    # Data first: a bad row is told before anything is made or loaded.
    signals = graft_signals(folder, recipe)
    tokenizer = _tokenizer(folder)
    material = {name: load_material(name, recipe, signals[name], tokenizer) for name in signals}
    data = {name: found.record for name, found in material.items()}

    # Torch from here on: recipes and rows are refused without it.
    from otter_cli.training.baselines import make_trainee
    from otter_cli.training.loop import Run

    trainee = make_trainee(folder, recipe, baseline, to, device)

    def write(step: int, metrics: Metrics) -> None:
        trainee.write({n: _record(n, recipe, step, data[n], metrics) for n in recipe.signals})

    states.path.mkdir(exist_ok=True)
    with writer_lock(states.path):
        identity = identity_of(recipe, data)
        run = Run(trainee, recipe, material, states, identity, device)
        if resume:
            check_same_run(states, identity)
            run.resume()
            say(f"going on after step {run.step}")
        else:
            states.clear()
        forget_after(states.path / METRICS, run.step)
        with JsonLines(states.path / METRICS) as log:
            run.go(log, write)
    count = sum(parameter.numel() for parameter in trainee.parameters.values())
    return TrainResult(target, run.metrics, run.step, run.seconds, count, data)


def _target(folder: Path, baseline: Baseline | None, to: Path | None, resume: bool) -> Path:
    if not folder.is_dir():
        raise OtterError(f"{folder} is no folder", hint="graft a base first: otter graft BASE OUT")
    if (baseline is None) != (to is None):
        raise OtterError(
            "--baseline and --to go together", hint="for example --baseline head --to head-only"
        )
    if to is not None and to.exists() and not resume:
        raise OtterError(
            f"{to} exists already",
            hint="--resume goes on with it; else choose another, or remove it",
        )
    return to or folder


def _record(
    name: str, recipe: Recipe, step: int, data: dict[str, Any], metrics: Metrics
) -> TrainingRecord:
    return TrainingRecord(
        steps=step,
        seed=recipe.seed,
        objective=recipe.signals[name].objective,
        recipe_sha256=recipe.sha256(),
        data=data,
        metrics={what: vars(value) for what, value in metrics.get(name, {}).items()},
    )


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)
