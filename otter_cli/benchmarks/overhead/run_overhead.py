"""A measurement of overhead from its options to its result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from otter_cli.benchmarks.options import OverheadOptions
from otter_cli.benchmarks.overhead.commands import start_up_groups, surgery_groups
from otter_cli.benchmarks.overhead.guided_decoding import guided_decoding_groups
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
    WARM_UP,
    MachineRates,
    machine_name,
    measure_rates,
)
from otter_cli.benchmarks.overhead.peers import peer_groups, speculative_groups
from otter_cli.benchmarks.overhead.prefill_decode import (
    PrefillDecodeTimes,
    measure_prefill_decode,
    overhead_row,
)
from otter_cli.benchmarks.overhead.profile import profile_groups
from otter_cli.benchmarks.overhead.result import (
    MeasuredGroup,
    OverheadResult,
    OverheadSettings,
)
from otter_cli.benchmarks.overhead.training_steps import training_groups
from otter_cli.core.console import say
from otter_cli.core.errors import OtterError
from otter_cli.core.provenance import provenance
from otter_cli.signals.config import parse_signal

if TYPE_CHECKING:
    import torch


# What can be measured beside prefill and decoding, by the name of its option, in order.
GROUPS: dict[str, Callable[[OverheadRun], list[MeasuredGroup]]] = {
    "peers": peer_groups,
    "decoding": guided_decoding_groups,
    "speculative": speculative_groups,
    "training": training_groups,
    "surgery": surgery_groups,
    "start-up": start_up_groups,
    "profile": profile_groups,
}


def run_overhead(options: OverheadOptions) -> OverheadResult:
    """Measures, and says on stderr what it measures. Raises OtterError."""
    with _torch_threads(options.threads) as threads:
        models = load_models(options)
        settings = overhead_settings(options, models, threads)
        rates = _measure_rates(models)
        say(f"{models.name}: base and graft in turns, {settings.repeats} rounds")
        separate = random_reward_model(models.stock)
        first = measure_prefill_decode(models, settings, separate)
        measured = {options.label: (models, first)}
        if "sweep" in options.groups:
            measured |= _measure_sweep(models, settings)
        # Measured before and after, because other load on the machine changes.
        rates = rates.best(_measure_rates(models))
        rows = [
            overhead_row(name, OverheadRun(each, settings, rates), times)
            for name, (each, times) in measured.items()
        ]
        run = OverheadRun(models, settings, rates)
        groups: list[MeasuredGroup] = []
        for name in options.groups:
            if name != "sweep":
                say(f"{models.name}: {name}")
                groups += GROUPS[name](run)
        return OverheadResult(
            settings=settings,
            machine=machine_name(),
            rates=rates,
            rows=rows,
            groups=groups,
            provenance=provenance(),
        )


def _measure_sweep(
    models: BaseWithGraft, settings: OverheadSettings
) -> dict[str, tuple[BaseWithGraft, PrefillDecodeTimes]]:
    """Insertions of growing size on the same base: FFN units alone, heads alone."""
    measured = {}
    part: SizedPart
    for part in ("FFN", "attention"):
        for share in SWEEP:
            plan = plan_of_share(models.shape, models.parameters, share, part)
            # The share that it has, which is not always the one of the sweep: heads are whole.
            name = f"{part}, {100 * plan.parameters / models.parameters:.2g} %"
            if name not in measured:
                say(f"{models.name}: {name}")
                grown = graft_in_memory(models.name, models.stock, plan)
                measured[name] = (grown, measure_prefill_decode(grown, settings))
    return measured


def load_models(options: OverheadOptions) -> BaseWithGraft:
    """The grafted folder, or a random base of the shape with an insertion."""
    import torch

    dtype: torch.dtype | None = getattr(torch, options.dtype) if options.dtype else None
    if options.folder is not None:
        return from_folder(options.folder, dtype=dtype, device=options.device)
    assert options.shape is not None
    say(f"a random base of shape {options.shape}")
    signals = tuple(parse_signal(text) for text in options.signal or ("reward",))
    sizes = {**options.sizes, "signals": signals}
    return from_shape(options.shape, sizes, dtype=dtype or torch.float32, device=options.device)


def overhead_settings(
    options: OverheadOptions, models: BaseWithGraft, threads: int
) -> OverheadSettings:
    """Raises OtterError where context and repeats exceed the base's window."""
    needed = options.context + WARM_UP + options.repeats
    if needed > models.shape.max_positions:
        raise OtterError(
            f"{options.context} tokens of context, {WARM_UP} steps to warm up and "
            f"{options.repeats} repeats exceed the base's window of {models.shape.max_positions}",
            hint="lower --context or --repeats",
        )
    return OverheadSettings(
        subject=models.name,
        dtype=str(models.stock.dtype).removeprefix("torch."),
        device=options.device,
        threads=threads,
        batch=options.batch,
        context=options.context,
        repeats=options.repeats,
        stream=_stream_backend(options.device),
    )


def _stream_backend(device: str) -> str:
    from otter_cli.accel.native_library import native_status

    return native_status() if device == "cpu" else "torch's operations"


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
