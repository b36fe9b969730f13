"""The instruments: interleaved times, peak memory, counted work, and the rates of this machine.

Contestants take turns, so that other load on the machine slows all of them. Work is floating-point
operations and bytes moved: a weight is read once per pass, activations stay in cache. Work divided
by the measured rates is a lower bound of the time (docs/method.md, Costs)."""

from __future__ import annotations

import gc
import platform
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict

from otter_cli.core.console import Advance, progress
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
    """Seconds of one token or one pass of the whole batch, and the batch's first row, if any."""

    seconds: float
    generation: Generation | None = None

    @classmethod
    def per_pass(cls, first: Generation) -> Self:
        """The mean time of a pass after the prefill, which the counters' seconds leave out."""
        passes = max(1, first.counters.base_passes - 1)
        return cls(first.counters.seconds / passes, first)


PHASE_SECONDS = 180.0
_LEAST_ROUNDS = 2  # that give an interval
_SECONDS_TO_FIRST_LINE = 2.0


@dataclass(frozen=True)
class Pace:
    """How many rounds a phase gets. With `deadline`, a time of the monotonic clock, as many of
    them as fit; without it, all. `interrupted`: whether the user wants the results so far."""

    deadline: float | None = None
    interrupted: Callable[[], bool] = lambda: False

    def phase(self, seconds: float | None) -> Pace:
        """The pace of a phase that starts now, and may take so many seconds."""
        deadline = None if seconds is None else time.monotonic() + seconds
        return Pace(deadline, self.interrupted)

    def share(self, parts: int) -> Pace:
        """The pace of the next of so many equal parts that are left of this phase."""
        return self.phase(None if self.deadline is None else self._left() / parts)

    def fitting_rounds(self, most: int, round_seconds: float) -> int:
        """How many rounds of that length fit, from none to `most`."""
        if self.deadline is None:
            return most
        return max(0, min(most, int(self._left() / max(round_seconds, 1e-9))))

    @property
    def is_over(self) -> bool:
        return self.deadline is not None and self._left() <= 0

    def _left(self) -> float:
        assert self.deadline is not None
        return self.deadline - time.monotonic()


ALL_ROUNDS = Pace()


def interleaved(
    steps: Mapping[str, StepFunction],
    repeats: int,
    *,
    synchronise: Callable[[], None],
    on_round: Callable[[Mapping[str, Any]], None] = lambda outputs: None,
    warm_up: int = WARM_UP,
    pace: Pace = ALL_ROUNDS,
    label: str = "",
) -> StepTimes:
    """Runs every step once per round; the first step changes from round to round.

    Warm-up rounds are not in the result. `on_round` gets the outputs of a round, untimed. The first
    step is the reference of the ratios that progress shows under `label`. The pace may allow fewer
    rounds than `repeats`: the last warm-up round says how many fit, and counts as a round itself
    where fewer than two do. An interrupt ends with the last whole round. Raises KeyboardInterrupt
    where there is none.
    """
    turns = _Turns(steps, synchronise, on_round, pace)
    with _garbage_collection_off():
        with turns.progress(warm_up, f"{label}, warm-up" if label else "") as advance:
            started = time.monotonic()
            for _ in range(warm_up):
                started = time.monotonic()
                if not turns.run_round(advance):
                    raise KeyboardInterrupt
        rounds = repeats
        if warm_up:
            rounds = pace.fitting_rounds(repeats, time.monotonic() - started)
            kept = 1 if rounds < min(_LEAST_ROUNDS, repeats) else 0
            del turns.rounds[: len(turns.rounds) - kept]
            rounds = max(rounds, min(_LEAST_ROUNDS, repeats) - kept)
        with turns.progress(rounds, label) as advance:
            for _ in range(rounds):
                enough = len(turns.rounds) >= _LEAST_ROUNDS and pace.is_over
                if enough or not turns.run_round(advance):
                    break
    if not turns.rounds:
        raise KeyboardInterrupt
    return {name: np.array([seconds[name] for seconds in turns.rounds]) for name in turns.names}


class _Turns:
    """The rounds of contestants so far: seconds by contestant."""

    def __init__(
        self,
        steps: Mapping[str, StepFunction],
        synchronise: Callable[[], None],
        on_round: Callable[[Mapping[str, Any]], None],
        pace: Pace,
    ) -> None:
        self.steps, self.names = steps, list(steps)
        self.synchronise, self.on_round, self.pace = synchronise, on_round, pace
        self.rounds: list[dict[str, float]] = []
        self.number = 0

    def progress(self, rounds: int, label: str) -> AbstractContextManager[Advance]:
        """Progress over so many rounds. Lines, since a bar would be drawn while a step is timed."""
        if not label:
            return nullcontext(lambda count: None)
        total = rounds * len(self.names)
        return progress(total, label, first=_SECONDS_TO_FIRST_LINE, note=self.ratios, bar=False)

    def run_round(self, advance: Advance) -> bool:
        """Runs and records a round. False, and nothing recorded, if the user interrupted it."""
        first = self.number % len(self.names)
        seconds: dict[str, float] = {}
        outputs: dict[str, Any] = {}
        for name in self.names[first:] + self.names[:first]:
            if self.pace.interrupted():
                return False
            self.synchronise()
            started = time.perf_counter()
            outputs[name] = output = self.steps[name]()
            self.synchronise()
            elapsed = time.perf_counter() - started
            seconds[name] = output.seconds if isinstance(output, TimedGeneration) else elapsed
            advance(1)
        self.on_round(outputs)
        self.rounds.append(seconds)
        self.number += 1
        return True

    def ratios(self) -> str:
        """The median ratios so far of some contestants over the first one."""
        reference, *others = self.names
        if not self.rounds or not others:
            return ""
        texts = []
        for name in others[:_RATIOS_SHOWN]:
            ratio = np.median([seconds[name] / seconds[reference] for seconds in self.rounds])
            texts.append(f"{name} {ratio:.3f}")
        return f"so far {', '.join(texts)} of {reference}'s time, {len(self.rounds)} rounds"


_RATIOS_SHOWN = 4


def synchroniser(device: str) -> Callable[[], None]:
    """A function that waits until the device has finished its work. A CPU always has."""
    if not device.startswith("cuda"):
        return lambda: None
    import torch

    return lambda: torch.cuda.synchronize(device)


@contextmanager
def _garbage_collection_off() -> Iterator[None]:
    """A collection during one step would charge that step for the garbage of all."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def peak_above(run: Callable[[], object], device: str) -> int:
    """Peak bytes that `run` allocates, by torch's allocator on a GPU, by its profiler on a CPU."""
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
    """`tokens` new tokens in each of `batch` rows after `context`, with logits of the last only."""

    batch: int
    tokens: int
    context: int
    itemsize: int

    @property
    def rows(self) -> int:
        return self.batch * self.tokens

    @property
    def pairs(self) -> float:
        """Pairs of a query and a position that it attends to."""
        return self.batch * self.tokens * (self.context + (self.tokens + 1) / 2)

    @property
    def cached(self) -> int:
        """Positions whose keys and values are read or written."""
        return self.batch * (self.context + self.tokens)


def base_work(shape: BaseShape, layer_weights: int, step: PassShape) -> CountedWork:
    """A pass of the base, whose decoder layers have `layer_weights` matrix elements."""
    head = shape.vocab * shape.hidden
    cache = 2 * shape.layers * shape.kv_heads * shape.head_dim * step.cached
    products = 2 * (layer_weights * step.rows + head * step.batch)
    attention = 4 * shape.layers * shape.heads * shape.head_dim * step.pairs
    moved = layer_weights + head + shape.hidden * step.rows + cache
    return CountedWork(products + attention, step.itemsize * moved)


def inserted_work(plan: Plan, step: PassShape) -> CountedWork:
    """The work that the insertion adds to that pass. Signals are read at the last positions."""
    config, shape = plan.config, plan.shape
    matrices = sum(slot.count for slot in plan.tensors if slot.role in ("matrix", "output"))
    heads = sum(t.count for t in plan.tensors if t.role == "signal" and len(t.shape) > 1)
    futures = [signal for signal in config.signals if signal.kind == "future"]
    future_work = sum(future_token_work(signal, config, shape) for signal in futures)
    # The base's own attention reads the base's keys and values in any case.
    own = config.kv_heads if config.kv == "own" else 0
    cache = 2 * len(config.layers) * own * shape.head_dim * step.cached
    products = 2 * (matrices * step.rows + (heads + future_work) * step.batch)
    attention = 4 * len(config.layers) * config.heads * shape.head_dim * step.pairs
    moved = matrices + heads + config.hidden * step.rows + cache
    return CountedWork(products + attention, step.itemsize * moved)


def future_token_work(signal: SignalConfig, config: InsertionConfig, shape: BaseShape) -> int:
    """Multiply-adds of reading future tokens at one position, beyond one use of each weight:
    products over the vocabulary, and the steps of a cell, which continues from its own guesses."""
    product = shape.vocab * shape.hidden
    if signal.width == 0:
        return signal.size * product
    step = FutureHead().draft_cost(signal, shape.hidden, config.hidden, shape.vocab) - product
    # Each guess is chosen before the next step, and all of them are scored at the end.
    return 2 * signal.size * product + (signal.size - 1) * step


# More bytes than any processor's cache, and a product large enough for the best rate.
_STREAMED_BYTES = 2**29
_SQUARE = 2048
_TRIES = 5


class MachineRates(BaseModel):
    """The best of several tries, so that other load on the machine does not raise the bound."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes_per_second: float
    flops_per_second: float

    def seconds(self, work: CountedWork) -> float:
        """The least time for that work: the longer of moving its bytes and computing."""
        return max(work.bytes / self.bytes_per_second, work.flops / self.flops_per_second)

    def limit(self, work: CountedWork) -> Literal["bytes", "flops"]:
        moving = work.bytes / self.bytes_per_second
        return "bytes" if moving >= work.flops / self.flops_per_second else "flops"

    def best(self, other: MachineRates) -> MachineRates:
        return MachineRates(
            bytes_per_second=max(self.bytes_per_second, other.bytes_per_second),
            flops_per_second=max(self.flops_per_second, other.flops_per_second),
        )


def measure_rates(dtype: torch.dtype, device: str, *, scale: float = 1.0) -> MachineRates:
    """Bytes by a matrix times a vector and by a sum, operations by a product of square matrices.

    `scale` makes the matrices smaller, for a smoke run.
    """
    import torch

    square = max(64, int(_SQUARE * scale))
    rows = max(64, int(_STREAMED_BYTES * scale) // (8192 * dtype.itemsize))
    matrix = torch.ones(rows, 8192, dtype=dtype, device=device)
    vector = torch.ones(8192, dtype=dtype, device=device)
    left, right = (torch.ones(square, square, dtype=dtype, device=device) for _ in range(2))

    def best_time(run: Callable[[], object]) -> float:
        times = interleaved({"": run}, _TRIES, synchronise=synchroniser(device), warm_up=1)
        return float(times[""].min())

    with torch.no_grad():
        streamed = best_time(lambda: matrix @ vector)
        summed = best_time(lambda: matrix.sum(dtype=torch.float32))
        multiplied = best_time(lambda: left @ right)
    return MachineRates(
        bytes_per_second=matrix.numel() * dtype.itemsize / min(streamed, summed),
        flops_per_second=2 * square**3 / multiplied,
    )


def machine_name() -> str:
    """A name that identifies no owner: the accelerator's, or such as `cpu-2-cores-avx512`."""
    machine = hardware()
    if machine["accelerators"]:
        return re.sub(r"[^a-z0-9]+", "-", machine["accelerators"][0].lower()).strip("-")
    return f"cpu-{machine['cores']}-cores-{_vector_extension()}"


def _vector_extension() -> str:
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.exists() else set()
    known = {"amx_tile": "amx", "avx512f": "avx512", "avx2": "avx2", "asimd": "neon"}
    return next((name for flag, name in known.items() if flag in flags), platform.machine())
