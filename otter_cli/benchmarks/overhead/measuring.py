"""The instruments: times in turns, peak memory, work by count, and the rates of this machine.

Contestants take turns, so that other load disturbs all alike. Work is floating-point operations
and bytes moved: a weight is read once per pass, activations stay in cache. Work divided by the
measured rates is a lower bound of the time (roofline)."""

from __future__ import annotations

import gc
import platform
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from otter_cli.core.provenance import hardware
from otter_cli.graft.config import InsertionConfig
from otter_cli.graft.plan import Plan
from otter_cli.signals.config import SignalConfig
from otter_cli.signals.heads import FutureHead

if TYPE_CHECKING:
    import torch

    from otter_cli.decoding.results import Generation
    from otter_cli.families.shape import BaseShape


StepFunction = Callable[[], Any]
StepTimes = dict[str, np.ndarray]  # seconds, [rounds]
WARM_UP = 3


@dataclass(frozen=True)
class TimedGeneration:
    """Seconds of a token, or of a pass, which the rows share; a batch's first row, if any."""

    seconds: float
    generation: Generation | None = None


def interleaved(
    steps: Mapping[str, StepFunction],
    repeats: int,
    *,
    synchronise: Callable[[], None],
    seen: Callable[[Mapping[str, Any]], None] = lambda outputs: None,
    warm_up: int = WARM_UP,
) -> StepTimes:
    """Every step once a round, each round begun by another one; warm-up rounds are left out.

    `seen` gets what the steps of a round returned, outside the time.
    """
    names, rounds = list(steps), []
    with _garbage_collection_off():
        for number in range(warm_up + repeats):
            first = number % len(names)
            seconds, outputs = {}, {}
            for name in names[first:] + names[:first]:
                synchronise()
                started = time.perf_counter()
                outputs[name] = steps[name]()
                synchronise()
                seconds[name] = time.perf_counter() - started
            seen(outputs)
            if number >= warm_up:
                rounds.append(seconds)
    return {name: np.array([seconds[name] for seconds in rounds]) for name in names}


def synchroniser(device: str) -> Callable[[], None]:
    """Waits until the device has done what it was given; a CPU has already."""
    if not device.startswith("cuda"):
        return lambda: None
    import torch

    return lambda: torch.cuda.synchronize(device)


@contextmanager
def _garbage_collection_off() -> Iterator[None]:
    """A collection in one contestant's step would be paid by it for the garbage of all."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def peak_above(run: Callable[[], object], device: str) -> int:
    """By the allocator's own count: on a GPU its peak, on a CPU every allocation of torch."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - before
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    return _peak_of_events(profiler.profiler.kineto_results.events())


def _peak_of_events(events: Iterable[Any]) -> int:
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    return max(accumulate((change for _, change in sorted(changes)), initial=0))


@dataclass(frozen=True)
class CountedWork:
    flops: float
    bytes: float

    def __add__(self, other: CountedWork) -> CountedWork:
        return CountedWork(self.flops + other.flops, self.bytes + other.bytes)


@dataclass(frozen=True)
class PassShape:
    """`tokens` new ones in each of `batch` rows, after `context`; logits of the last ones only."""

    batch: int
    tokens: int
    context: int
    itemsize: int

    @property
    def rows(self) -> int:
        return self.batch * self.tokens

    @property
    def pairs(self) -> float:
        """Queries times the positions that each of them sees."""
        return self.batch * self.tokens * (self.context + (self.tokens + 1) / 2)

    @property
    def cached(self) -> int:
        """Positions whose keys and values are read or written."""
        return self.batch * (self.context + self.tokens)


def base_work(shape: BaseShape, layer_weights: int, one: PassShape) -> CountedWork:
    """A pass of the base, whose decoder layers hold `layer_weights` matrix elements."""
    head = shape.vocab * shape.hidden
    cache = 2 * shape.layers * shape.kv_heads * shape.head_dim * one.cached
    products = 2 * (layer_weights * one.rows + head * one.batch)
    attention = 4 * shape.layers * shape.heads * shape.head_dim * one.pairs
    moved = layer_weights + head + shape.hidden * one.rows + cache
    return CountedWork(products + attention, one.itemsize * moved)


def inserted_work(plan: Plan, one: PassShape) -> CountedWork:
    """What the insertion adds to that pass; its signals are read at the last positions."""
    config, shape = plan.config, plan.shape
    matrices = sum(slot.count for slot in plan.slots if slot.role in ("matrix", "output"))
    heads = sum(slot.count for slot in plan.slots if slot.role == "signal" and len(slot.shape) > 1)
    futures = [signal for signal in config.signals if signal.kind == "future"]
    again = sum(future_token_work(signal, config, shape) for signal in futures)
    # The base's keys and values are read by its own attention anyhow.
    own = config.kv_heads if config.kv == "own" else 0
    cache = 2 * len(config.layers) * own * shape.head_dim * one.cached
    products = 2 * (matrices * one.rows + (heads + again) * one.batch)
    attention = 4 * len(config.layers) * config.heads * shape.head_dim * one.pairs
    moved = matrices + heads + config.hidden * one.rows + cache
    return CountedWork(products + attention, one.itemsize * moved)


def future_token_work(signal: SignalConfig, config: InsertionConfig, shape: BaseShape) -> int:
    """Multiply-adds of future tokens read at one position, beyond one use of each weight: products
    over the vocabulary, and the steps of a cell, which goes on from its own guesses."""
    product = shape.vocab * shape.hidden
    if signal.width == 0:
        return signal.size * product
    step = FutureHead().work(signal, shape.hidden, config.hidden, shape.vocab) - product
    # A guess is looked up before the next step, and all are read in the end.
    return 2 * signal.size * product + (signal.size - 1) * step


# Beyond any cache of a processor, and a product large enough for its best rate.
_STREAMED_BYTES = 2**29
_SQUARE = 2048
_TRIES = 5


class MachineRates(BaseModel):
    """Best of several tries: a bound is not to be beaten because something else ran."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes_per_second: float
    flops_per_second: float

    def seconds(self, work: CountedWork) -> float:
        """The least time for that work: the longer of moving it and computing it."""
        return max(work.bytes / self.bytes_per_second, work.flops / self.flops_per_second)

    def limit(self, work: CountedWork) -> str:
        moving = work.bytes / self.bytes_per_second
        return "bytes" if moving >= work.flops / self.flops_per_second else "flops"

    def best(self, other: MachineRates) -> MachineRates:
        return MachineRates(
            bytes_per_second=max(self.bytes_per_second, other.bytes_per_second),
            flops_per_second=max(self.flops_per_second, other.flops_per_second),
        )


def measure_rates(dtype: torch.dtype, device: str, *, scale: float = 1.0) -> MachineRates:
    """A matrix streamed through a product with one vector, and a product of square matrices; both
    smaller by `scale` for a smoke run."""
    import torch

    square = max(64, int(_SQUARE * scale))
    rows = max(64, int(_STREAMED_BYTES * scale) // (8192 * dtype.itemsize))
    matrix = torch.ones(rows, 8192, dtype=dtype, device=device)
    vector = torch.ones(8192, dtype=dtype, device=device)
    one, other = (torch.ones(square, square, dtype=dtype, device=device) for _ in range(2))
    with torch.no_grad():
        streamed = _best_time(lambda: matrix @ vector, device)
        summed = _best_time(lambda: matrix.sum(dtype=torch.float32), device)
        multiplied = _best_time(lambda: one @ other, device)
    return MachineRates(
        bytes_per_second=matrix.numel() * dtype.itemsize / min(streamed, summed),
        flops_per_second=2 * square**3 / multiplied,
    )


def machine_name() -> str:
    """A name without an owner: `cpu-2-cores-avx512`, or the accelerator's."""
    found = hardware()
    if found["accelerators"]:
        return re.sub(r"[^a-z0-9]+", "-", found["accelerators"][0].lower()).strip("-")
    return f"cpu-{found['cores']}-cores-{_vector_extension()}"


def _vector_extension() -> str:
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.exists() else set()
    known = {"amx_tile": "amx", "avx512f": "avx512", "avx2": "avx2", "asimd": "neon"}
    return next((name for flag, name in known.items() if flag in flags), platform.machine())


def _best_time(run: Callable[[], object], device: str) -> float:
    synchronise = synchroniser(device)
    seconds = []
    for _ in range(_TRIES + 1):
        synchronise()
        started = time.perf_counter()
        run()
        synchronise()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])
