"""`train`: a folder and a recipe in, a trained folder out.

Everything that can be refused is refused before a model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otter_cli.checkpoint.gguf.header import refuse_gguf
from otter_cli.core.atomic import refuse_overlap, writer_lock
from otter_cli.core.console import say, warn
from otter_cli.core.errors import OtterError
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
from otter_cli.training.recipe import BaselineName, Recipe, check_early_stopping
from otter_cli.training.signal_data import (
    SignalData,
    graft_signals,
    load_graft_tokenizer,
    load_signal_data,
    prepare_signal_data,
)
from otter_cli.training.state import StateFolder, check_same_run, refuse_unfinished, run_identity

if TYPE_CHECKING:
    from otter_cli.training.loop import Metrics
    from otter_cli.training.sharding import ShardedInsertions
    from otter_cli.training.trainable import Trainable


@dataclass(frozen=True)
class TrainResult:
    """`signals`: held-out figures by signal and metric; `seconds`: of the steps, resumed or not."""

    folder: Path
    signals: dict[str, dict[str, Interval]]
    steps: int
    seconds: float
    trained_parameters: int
    data: dict[str, Any]
    # Bytes: `activations` of a step's graph, and `peak` above the weights.
    memory: dict[str, int]


@dataclass(frozen=True)
class TrainOptions:
    """How a run is carried out; none of it moves a parameter. `resume` goes on from the last saved
    state, if any; `restart` drops an unfinished run. `shard`: each process holds a part of the
    frozen base and of the insertion. `log`: tensorboard, trackio or wandb, beside metrics.jsonl."""

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
    **changed: Any,
) -> TrainResult:
    """Trains the recipe's signals of a grafted folder, or a baseline for it into `to`; `changed`
    are single options. Under torchrun its processes share the batches.

    Raises OtterError for bad input, CheckFailed when a guard stops it, KeyboardInterrupt after
    Ctrl-C.
    """
    options = replace(options or TrainOptions(), **changed)
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
    # Before hours of training on a base that is not the one that was grafted.
    open_graft(folder)
    # Data first: a bad row is told before anything is made or loaded.
    signals = graft_signals(folder, recipe)
    tokenizer = load_graft_tokenizer(folder)
    material = {name: load_signal_data(name, recipe, signals[name], tokenizer) for name in signals}
    with join_process_group(options.device) as (group, device):
        from otter_cli.training.baselines import make_trainable

        group.in_turn(partial(prepare_signal_data, material, recipe, folder, device))
        make = partial(make_trainable, folder, recipe, baseline, to, device)
        return _run(make, target, recipe, material, replace(options, device=device), group)


def _run(
    make: Callable[[], Trainable],
    target: Path,
    recipe: Recipe,
    material: dict[str, SignalData],
    options: TrainOptions,
    group: ProcessGroup,
) -> TrainResult:
    # Torch from here on: recipes and rows are refused without it.
    from otter_cli.training.loop import PeakMemory, TrainingRun, activation_bytes

    data = {name: found.record for name, found in material.items()}
    trainee = group.in_turn(make)
    shards: ShardedInsertions | None = None
    if options.shard:
        from otter_cli.training.trainable import shard_trainable

        shards = shard_trainable(trainee, recipe, group, options.device)
    states, identity = StateFolder(target), run_identity(recipe, data)

    def write(step: int, metrics: Metrics) -> None:
        if shards is not None:
            shards.make_whole()
        if group.first:
            trainee.write(
                {n: _training_record(n, recipe, step, data[n], metrics) for n in recipe.signals}
            )

    states.path.mkdir(parents=True, exist_ok=True)
    with writer_lock(states.path) if group.first else nullcontext():
        run = TrainingRun(trainee, recipe, material, states, identity, options.device, group)
        if options.resume:
            check_same_run(states, identity)
            run.resume()
            if run.step:
                say(f"going on after step {run.step}")
        group.wait()
        if group.first and not options.resume:
            states.clear()
        kept, peak = activation_bytes(run), PeakMemory(options.device)
        say(
            f"a step keeps {bytes_text(kept)} of activations for its gradients, on the longest rows"
        )
        log = states.path if group.first else None
        with MetricsLog(log, run.step, log=options.log) as journal, keep_freed_memory():
            run.go(journal, write)
    count = sum(parameter.numel() for parameter in trainee.parameters.values())
    memory = {"activations": kept, "peak": peak.bytes()}
    say(f"peak memory above the weights: {bytes_text(memory['peak'])}")
    return TrainResult(target, run.metrics, run.step, run.seconds, count, data, memory)


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
    return TrainingRecord(
        steps=step,
        seed=recipe.seed,
        objective=recipe.signals[name].objective,
        recipe_sha256=recipe.sha256(),
        data={**data, "base_changed": changed} if (changed := base_changes()) else data,
        metrics={what: vars(value) for what, value in metrics.get(name, {}).items()},
        positions=recipe.signals[name].trained_at,
        end=recipe.signals[name].eos,
    )
