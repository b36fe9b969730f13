"""A measurement of overhead from its options to its result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from otter_cli.accel.stream_path import model_stream_path
from otter_cli.benchmarks.options import OverheadOptions
from otter_cli.benchmarks.overhead.commands import start_up_groups, surgery_groups
from otter_cli.benchmarks.overhead.guided_decoding import (
    guided_cost_groups,
    guided_decoding_groups,
)
from otter_cli.benchmarks.overhead.measured_models import (
    SWEEP,
    BaseWithGraft,
    OverheadRun,
    SizedPart,
    from_folder,
    from_shape,
    graft_in_memory,
    plan_of_share,
    random_reward_model,
)
from otter_cli.benchmarks.overhead.measuring import (
    PHASE_SECONDS,
    WARM_UP,
    MachineRates,
    Pace,
    machine_name,
    measure_rates,
)
from otter_cli.benchmarks.overhead.peers import peer_groups, speculative_groups
from otter_cli.benchmarks.overhead.prefill_decode import (
    measure_prefill_decode,
    overhead_row,
)
from otter_cli.benchmarks.overhead.profile import profile_groups
from otter_cli.benchmarks.overhead.result import (
    MeasuredGroup,
    OverheadResult,
    OverheadRow,
    OverheadSettings,
    rounds_text,
)
from otter_cli.benchmarks.overhead.row_costs import row_cost_groups
from otter_cli.benchmarks.overhead.training_steps import training_groups
from otter_cli.core.console import say
from otter_cli.core.errors import OtterError
from otter_cli.core.process import interruptible
from otter_cli.core.provenance import provenance
from otter_cli.graft.plan import Plan
from otter_cli.signals.config import parse_signal

if TYPE_CHECKING:
    import torch


# What can be measured beside prefill and decoding, by the name of its option, in order.
GROUPS: dict[str, Callable[[OverheadRun], Iterable[MeasuredGroup]]] = {
    "peers": peer_groups,
    "decoding": guided_decoding_groups,
    "guided": guided_cost_groups,
    "speculative": speculative_groups,
    "rows": row_cost_groups,
    "training": training_groups,
    "surgery": surgery_groups,
    "start-up": start_up_groups,
    "profile": profile_groups,
}


_MOST_REPEATS = 100


def run_overhead(
    options: OverheadOptions, keep: Callable[[OverheadResult], None] = lambda result: None
) -> OverheadResult:
    """Measures, with progress on stderr. `keep` gets the result so far after every part.

    Ctrl-C ends the phase after its last whole round, and the result names the phases that it left
    out. KeyboardInterrupt where not even base and graft were measured. Raises OtterError.
    """
    with _torch_threads(options.threads) as threads, interruptible() as interrupted:
        models = load_models(options)
        settings = overhead_settings(options, models, threads)
        pace = Pace(interrupted=interrupted)
        say(f"{models.name}: the rates of this machine")
        rates = _measure_rates(models)
        say(f"{models.name}: base and graft in turns, {rounds_text(settings)}")
        separate = random_reward_model(models.stock)
        phase = pace.phase(settings.seconds)
        first = measure_prefill_decode(models, settings, separate, phase)
        # Measured before and after, because other load on the machine changes.
        rates = rates.best(_measure_rates(models))
        run = OverheadRun(models, settings, rates, pace)
        result = OverheadResult(
            settings=settings,
            machine=machine_name(),
            rates=rates,
            rows=[overhead_row(options.label, run, first)],
            provenance=provenance(),
        )
        keep(result)
        if interrupted():
            return _interrupted(result, "prefill and decode", options.groups)
        for number, name in enumerate(options.groups):
            say(f"{models.name}: {name}, {number + 1} of {len(options.groups)}")
            for so_far in _measure_phase(name, run, result):
                result = so_far
                keep(result)
            if interrupted():
                return _interrupted(result, name, options.groups[number + 1 :])
        return result


def _measure_phase(name: str, run: OverheadRun, result: OverheadResult) -> Iterator[OverheadResult]:
    """The result with one part more of a phase at a time, up to an interrupt."""
    run = replace(run, pace=run.pace.phase(run.settings.seconds))
    try:
        if name == "sweep":
            for row in _measure_sweep(run):
                result = result.model_copy(update={"rows": [*result.rows, row]})
                yield result
        else:
            for group in GROUPS[name](run):
                result = result.model_copy(update={"groups": [*result.groups, group]})
                yield result
    except (KeyboardInterrupt, OtterError):
        # A command that was run as a contestant fails when Ctrl-C ends it.
        if not run.pace.interrupted():
            raise


def _interrupted(result: OverheadResult, during: str, rest: Sequence[str]) -> OverheadResult:
    left_out = [f"the rest of {during}", *rest]
    say(f"interrupted: the figures so far are kept, without {', '.join(left_out)}")
    return result.model_copy(update={"left_out": left_out})


def _measure_sweep(run: OverheadRun) -> Iterator[OverheadRow]:
    """Insertions of growing size on the same base: FFN units alone, heads alone."""
    models = run.models
    grown: dict[str, Plan] = {}
    part: SizedPart
    for part in ("FFN", "attention"):
        for share in SWEEP:
            plan = plan_of_share(models.shape, models.parameters, share, part)
            # The share that it has, which is not always the one of the sweep: heads are whole.
            name = f"{part}, {100 * plan.parameters / models.parameters:.2g} %"
            grown.setdefault(name, plan)
    for number, (name, plan) in enumerate(grown.items()):
        pace = run.pace.share(len(grown) - number)
        each = graft_in_memory(models.name, models.stock, plan)
        times = measure_prefill_decode(each, run.settings, pace=pace, name=f"{name}, ")
        yield overhead_row(name, replace(run, models=each), times)


def load_models(options: OverheadOptions) -> BaseWithGraft:
    """The grafted folder, or a random base of the shape with an insertion."""
    import torch

    dtype: torch.dtype | None = getattr(torch, options.dtype) if options.dtype else None
    if options.folder is not None:
        say(f"loading {options.folder}")
        return from_folder(options.folder, dtype=dtype, device=options.device)
    assert options.shape is not None
    say(f"a random base of shape {options.shape}")
    signals = tuple(parse_signal(text) for text in options.signal or ("reward",))
    sizes = {**options.sizes, "signals": signals}
    return from_shape(options.shape, sizes, dtype=dtype or torch.float32, device=options.device)


def overhead_settings(
    options: OverheadOptions, models: BaseWithGraft, threads: int
) -> OverheadSettings:
    """Raises OtterError where context and repeats exceed the base's window. Without --repeats there
    are as many as the window allows."""
    window = models.shape.max_positions
    room = window - options.context - WARM_UP
    repeats = options.repeats or min(_MOST_REPEATS, max(room, 1))
    if repeats > room:
        raise OtterError(
            f"{options.context} tokens of context, {WARM_UP} steps to warm up and "
            f"{repeats} repeats exceed the base's window of {window}",
            hint="lower --context or --repeats",
        )
    return OverheadSettings(
        subject=models.name,
        dtype=str(models.stock.dtype).removeprefix("torch."),
        device=options.device,
        threads=threads,
        batch=options.batch,
        context=options.context,
        repeats=repeats,
        seconds=None if options.repeats else PHASE_SECONDS,
        stream=model_stream_path(models.graft),
    )


def _measure_rates(models: BaseWithGraft) -> MachineRates:
    # A base that fits the processor's caches is for a smoke run, which needs no exact rates.
    scale = 1.0 if models.parameters > 2**24 else 1 / 16
    return measure_rates(models.stock.dtype, models.stock.device.type, scale=scale)


@contextmanager
def _torch_threads(threads: int | None) -> Iterator[int]:
    """Sets torch's threads within the block; yields how many they are."""
    import torch

    before = torch.get_num_threads()
    set_threads: Callable[[int], None] = torch.set_num_threads
    set_threads(threads or before)
    try:
        yield threads or before
    finally:
        set_threads(before)
