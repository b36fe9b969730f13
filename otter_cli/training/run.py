"""`train`: a folder and a recipe in, a trained folder out. `find_rate`: a learning rate for it.

Everything that can be refused is refused before a model is loaded. Torch is imported late: recipes
and rows are refused without it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from otter_cli.checkpoint.folder import refuse_gguf
from otter_cli.core.atomic import refuse_overlap, writer_lock
from otter_cli.core.console import say, warn
from otter_cli.core.errors import CheckFailed, OtterError
from otter_cli.core.formatting import bytes_text
from otter_cli.core.intervals import Interval
from otter_cli.core.process import keep_freed_memory
from otter_cli.core.provenance import base_changes
from otter_cli.graft.grafted_folder import open_graft
from otter_cli.graft.manifest import TrainingRecord
from otter_cli.training.distributed import (
    ProcessGroup,
    check_batch_divides,
    join_process_group,
    world_size,
)
from otter_cli.training.metrics_log import MetricsLog, check_tracker
from otter_cli.training.progress_note import SmoothedLoss
from otter_cli.training.recipe import BaselineName, Recipe, check_early_stopping
from otter_cli.training.signal_data import (
    SignalData,
    graft_signals,
    load_signal_data,
    prepare_signal_data,
)
from otter_cli.training.state import StateFolder, check_same_run, refuse_unfinished, run_identity

if TYPE_CHECKING:
    from otter_cli.training.loop import Metrics, TrainingRun
    from otter_cli.training.sharding import ShardedInsertions
    from otter_cli.training.trainable import Trainable


@dataclass(frozen=True)
class TrainResult:
    """`signals`: metrics on held-out rows by signal and metric. `seconds`: of all steps, those
    before a resumption included. `memory` in bytes: `activations` that a step saves for its
    backward pass, and `peak` above the weights."""

    folder: Path
    signals: dict[str, dict[str, Interval]]
    steps: int
    seconds: float
    trained_parameters: int
    data: dict[str, Any]
    memory: dict[str, int]


@dataclass(frozen=True)
class TrainOptions:
    """How a run is carried out, without an effect on the parameters. `resume` continues from the
    last saved state, if any; `restart` drops an unfinished run. `shard`: each process holds a part
    of the frozen base and of the insertion. `log`: tensorboard, trackio or wandb, beside
    metrics.jsonl."""

    resume: bool = False
    restart: bool = False
    device: str = "cpu"
    log: str | None = None
    shard: bool = False


def train(
    folder: Path,
    recipe: Recipe,
    options: TrainOptions | None = None,
    *,
    baseline: BaselineName | None = None,
    to: Path | None = None,
    **changes: Any,
) -> TrainResult:
    """Trains the recipe's signals of a grafted folder, or a baseline for it into `to`. `changes`
    are single options. The processes that torchrun starts share the batches.

    Raises OtterError for bad input, CheckFailed when a guard stops it, KeyboardInterrupt after
    Ctrl-C.
    """
    options = replace(options or TrainOptions(), **changes)
    target = _target_folder(folder, baseline, to, options.resume)
    recipe = recipe.for_baseline(baseline)
    check_early_stopping(recipe)
    check_batch_divides(recipe, world_size())
    if options.log is not None:
        check_tracker(options.log)
    if recipe.quantize is not None:
        warn(
            f"the base is {recipe.quantize} while this trains, and so are its figures; what the "
            "folder holds, and verify proves, is the file's own base"
        )
    states = StateFolder(target)
    if not (options.resume or options.restart):
        refuse_unfinished(states)
    data = _load_data(folder, recipe)
    with join_process_group(options.device) as (group, device):
        from otter_cli.training.baselines import make_trainable

        group.first_then_others(partial(prepare_signal_data, data, recipe, folder, device))
        make = partial(make_trainable, folder, recipe, baseline, to, device)
        return _run(make, states, recipe, data, replace(options, device=device), group)


def _load_data(folder: Path, recipe: Recipe) -> dict[str, SignalData]:
    """The data of each signal. The base is checked first, since training on another one than the
    grafted base takes hours; and a bad row is reported before a model is loaded."""
    from otter_cli.model.load import load_tokenizer

    open_graft(folder)
    signals, tokenizer = graft_signals(folder, recipe), load_tokenizer(folder)
    return {name: load_signal_data(name, recipe, signals[name], tokenizer) for name in signals}


def _run(
    make: Callable[[], Trainable],
    states: StateFolder,
    recipe: Recipe,
    data: dict[str, SignalData],
    options: TrainOptions,
    group: ProcessGroup,
) -> TrainResult:
    from otter_cli.training.loop import TrainingRun
    from otter_cli.training.memory import PeakMemory, plan_memory

    records = {name: signal_data.record for name, signal_data in data.items()}
    identity = run_identity(recipe, records)
    trainable = group.first_then_others(make)
    shards: ShardedInsertions | None = None
    if options.shard:
        shards = trainable.shard(recipe, group, options.device)

    def write(step: int, metrics: Metrics) -> None:
        if shards is not None:
            shards.unshard()
        if group.is_first:
            trainable.write(
                {n: _training_record(n, recipe, step, records[n], metrics) for n in recipe.signals}
            )

    states.path.mkdir(parents=True, exist_ok=True)
    with writer_lock(states.path) if group.is_first else nullcontext():
        run = TrainingRun(trainable, recipe, data, states, identity, options.device, group)
        if options.resume:
            check_same_run(states, identity)
            run.resume()
            if run.step:
                say(f"going on after step {run.step}")
        group.barrier()
        if group.is_first and not options.resume:
            states.clear()
        peak = PeakMemory(options.device)
        plan = plan_memory(run)
        say(plan.description(recipe.accumulate))
        log_folder = states.path if group.is_first else None
        keep = keep_freed_memory() if plan.keeps_little else nullcontext()
        with MetricsLog(log_folder, run.step, log=options.log) as log, keep:
            run.train(log, write)
    count = sum(parameter.numel() for parameter in trainable.parameters.values())
    memory = {"activations": plan.activations, "peak": peak.bytes()}
    say(f"peak memory above the weights: {bytes_text(memory['peak'])}")
    return TrainResult(
        states.path.parent, run.metrics, run.step, run.seconds, count, records, memory
    )


def _target_folder(
    folder: Path, baseline: BaselineName | None, to: Path | None, resume: bool
) -> Path:
    refuse_gguf(folder)
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise OtterError(f"{folder} {what}", hint="give a folder that `otter graft` wrote")
    if (baseline is None) != (to is None):
        raise OtterError(
            "--baseline and --to go together", hint="for example --baseline head --to head-only"
        )
    if to is not None and to.exists() and not resume:
        raise OtterError(
            f"{to} exists already",
            hint="--resume goes on with it; else choose another, or remove it",
        )
    if to is not None:
        refuse_overlap(folder, to)
    return to or folder


def _training_record(
    name: str, recipe: Recipe, step: int, data: dict[str, Any], metrics: Metrics
) -> TrainingRecord:
    objective = recipe.signals[name]
    return TrainingRecord(
        steps=step,
        seed=recipe.seed,
        objective=objective.objective,
        recipe_sha256=recipe.sha256(),
        data={**data, "base_changed": changes} if (changes := base_changes()) else data,
        metrics={metric: vars(value) for metric, value in metrics.get(name, {}).items()},
        positions=objective.trained_positions,
        end=objective.eos,
    )


_LOWEST_RATE, _HIGHEST_RATE = 1e-6, 1.0
# The smoothed loss over its minimum that ends the sweep.
_DIVERGENCE_FACTOR = 4.0


@dataclass(frozen=True)
class RateSearch:
    """The rates that were tried, the smoothed loss at each, and the rate where it fell fastest."""

    rates: list[float]
    losses: list[float]
    suggestion: float


def find_rate(folder: Path, recipe: Recipe, *, steps: int = 60, device: str = "cpu") -> RateSearch:
    """A learning-rate range test (Smith, arXiv 1506.01186, 3.3): the loss while the rate grows. It
    writes no tensor. Raises OtterError where the loss falls at no rate."""
    data = _load_data(folder, recipe)
    prepare_signal_data(data, recipe, folder, device)

    from otter_cli.training.loop import TrainingRun
    from otter_cli.training.memory import plan_memory
    from otter_cli.training.trainable import GraftTrainable

    trainable = GraftTrainable(folder, recipe, device)
    run = TrainingRun(trainable, recipe, data, StateFolder(folder), {}, device)
    rates = np.geomspace(_LOWEST_RATE, _HIGHEST_RATE, steps).tolist()
    plan_memory(run)
    losses = _sweep(run, rates)
    return RateSearch(rates[: len(losses)], losses, steepest_rate(rates[: len(losses)], losses))


def _sweep(run: TrainingRun, rates: list[float]) -> list[float]:
    """Smoothed losses up to the first that diverges, which is included."""
    from otter_cli.training.loop import weighted_loss

    # The first rates are too small to open up an initialisation with zeros.
    run.guard.pending.clear()
    smoothed: list[float] = []
    average = SmoothedLoss()
    for rate in rates:
        try:
            losses = run.take_step(rate)["loss"]
        except CheckFailed:
            break
        smoothed.append(average.add(weighted_loss(run.recipe, losses)))
        if smoothed[-1] > _DIVERGENCE_FACTOR * min(smoothed):
            break
    return smoothed


def steepest_rate(rates: list[float], losses: list[float]) -> float:
    """The rate at which the loss falls fastest per factor of the rate, before its lowest point."""
    lowest = int(np.argmin(losses)) if losses else 0
    if lowest < 2:
        raise OtterError(
            f"the loss falls at no learning rate from {_LOWEST_RATE:g} to {_HIGHEST_RATE:g}",
            hint="check the objective and the labels, and try another --init",
        )
    slopes = np.gradient(losses[: lowest + 1], np.log(rates[: lowest + 1]))
    return rates[int(np.argmin(slopes))]
