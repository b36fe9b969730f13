"""`train`: a folder and a recipe in, a trained folder out, whatever happens in between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from otter_cli.core.atomic import write_text
from otter_cli.core.console import say
from otter_cli.core.errors import OtterError
from otter_cli.core.intervals import Interval
from otter_cli.core.jsonlines import JsonLines, read_jsonlines
from otter_cli.core.lock import writer_lock
from otter_cli.insertion import TrainingRecord
from otter_cli.training.baselines import Baseline, make_trainee
from otter_cli.training.loop import Metrics, Run
from otter_cli.training.material import load_material
from otter_cli.training.recipe import Recipe
from otter_cli.training.state import StateFolder
from otter_cli.training.trainee import graft_signals

METRICS = "metrics.jsonl"
# What may change between a run and its resumption: it moves no parameter.
_FREE = {"evaluate_every", "save_every", "allow_truncation", "baselines"}


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
    _refuse_unfinished(states, resume or restart)
    # Data first: a bad row is told before anything is made or loaded.
    signals = graft_signals(folder, recipe)
    tokenizer = _tokenizer(folder)
    material = {name: load_material(name, recipe, signals[name], tokenizer) for name in signals}
    data = {name: found.record for name, found in material.items()}
    trainee = make_trainee(folder, recipe, baseline, to, device)

    def write(step: int, metrics: Metrics) -> None:
        trainee.write({n: _record(n, recipe, step, data[n], metrics) for n in recipe.signals})

    states.path.mkdir(exist_ok=True)
    with writer_lock(states.path):
        identity = {"recipe": recipe.model_dump(mode="json", exclude=_FREE), "data": data}
        run = Run(trainee, recipe, material, states, identity, device)
        if resume:
            _check_same_run(states, identity)
            run.resume()
            say(f"going on after step {run.step}")
        else:
            states.clear()
        _forget_after(states.path / METRICS, run.step)
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


def _refuse_unfinished(states: StateFolder, allowed: bool) -> None:
    notes = states.notes()
    if allowed or notes is None:
        return
    done, steps = notes["step"], notes["identity"]["recipe"]["steps"]
    if done < steps:
        raise OtterError(
            f"{states.path} holds an unfinished run, at step {done} of {steps}",
            hint="--resume goes on with it; --restart drops it and trains the tensors as they are",
        )


def _check_same_run(states: StateFolder, identity: Mapping[str, Any]) -> None:
    """A run is resumed with the recipe and the data that it began with, or not at all."""
    notes = states.notes()
    if notes is None:
        return
    before, now = _flat(notes["identity"]), _flat(identity)
    differing = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if differing:
        key = differing[0]
        raise OtterError(
            f"the run to resume had {key} = {before.get(key)!r}, not {now.get(key)!r}",
            hint="resume with the same recipe and data, or --restart",
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            # As JSON has it: tuples come back from a state's notes as lists.
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def _forget_after(path: Path, step: int) -> None:
    """Drops what a killed run logged after the state that it now goes on from."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [
            line
            for line, record in zip(lines, read_jsonlines(path), strict=False)
            if record["step"] <= step
        ]
        write_text(path, "".join(kept))


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
