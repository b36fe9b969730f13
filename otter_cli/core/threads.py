"""How many threads torch starts, and how they wait. It is decided before torch is loaded.

A user decides by OMP_NUM_THREADS or --threads, and by OMP_WAIT_POLICY. Otherwise the number follows
from the affinity, from the limits of the control groups, and from the load that others put on the
machine; and threads that wait soon sleep. By default they spin for long: where other jobs run, a
spinning thread takes the processor from the thread that it waits for. Beside eight jobs on two
cores, a token of a base of 135 M parameters took 700 to 1,050 ms with spinning threads, 84 to
260 ms with these. Threads that sleep at once are no better there, and on a quiet machine they make
a training step take 1.19 times as long; threads that soon sleep, 1.02 times.
`tests/performance/busy_machine.py` measures both, on a busy and on a quiet machine.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass

from otter_cli.core.cpu_limits import (
    CpuTimes,
    cgroup_cores,
    cores_in_use,
    read_cpu_times,
    usable_cores,
)

_COUNT_NAMES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
# GNU's OpenMP, which torch's wheels bring, and LLVM's, which some builds use.
_WAIT_NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
SLEEP = "sleep"
# Some microseconds of spinning bridge the gaps between the small operations of one step.
_SOON_SLEEPING = {"GOMP_SPINCOUNT": "2000", "KMP_BLOCKTIME": "1"}
# The names that otter set, so that an otter that it starts decides anew.
_SET_BY_OTTER = "OTTER_SET_THREADS"

_SECONDS_OF_LOAD = 0.1  # the kernel counts in hundredths of a second
_start: CpuTimes | None = None


@dataclass(frozen=True)
class ThreadPlan:
    """`threads` of torch, and why so many. `limit`: cores that the control groups allow. `in_use`:
    cores that other processes used at the start. `waiting`: what decides how threads wait."""

    threads: int
    why: str
    cores: int
    limit: float | None
    in_use: float | None
    waiting: str

    @property
    def fewer_for_load(self) -> bool:
        return self.why == _LOAD

    @property
    def sentence(self) -> str:
        limit = "" if self.limit is None else f", {self.limit:g} allowed by the control group"
        used = "" if self.in_use is None else f", {self.in_use:.1f} used by other programs"
        return f"{self.threads}, from {self.why} ({self.cores} usable cores{limit}{used})"


_LOAD, _LIMIT, _CORES = "the load", "the control group's limit", "the usable cores"


def note_start() -> None:
    """Note the times at the start of the command. The load is what others use from then on."""
    global _start
    _start = read_cpu_times()


def load_of_others(sleep: Callable[[float], None] = time.sleep) -> float | None:
    """Cores that other processes used since `note_start`, or for a tenth of a second where less
    time has passed. None where the system does not say."""
    before = _start or read_cpu_times()
    if before is None:
        return os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    missing = before.clock + _SECONDS_OF_LOAD - time.monotonic()
    if missing > 0:
        sleep(missing)
    after = read_cpu_times()
    return None if after is None else cores_in_use(before, after)


def plan_threads(
    environment: MutableMapping[str, str],
    requested: int | None = None,
    *,
    cores: Callable[[], int] = usable_cores,
    limit: Callable[[], float | None] = cgroup_cores,
    load: Callable[[], float | None] = load_of_others,
) -> ThreadPlan:
    """The number of threads, from the first that says it: `requested`, the environment, or the
    cores that are allowed and free."""
    usable, allowed = cores(), limit()
    waiting = next((name for name in _WAIT_NAMES if name in environment), SLEEP)
    if requested is not None:
        return ThreadPlan(requested, "--threads", usable, allowed, None, waiting)
    for name in _COUNT_NAMES:
        first = environment.get(name, "").split(",")[0].strip()
        if first.isdecimal() and int(first) > 0:
            return ThreadPlan(int(first), name, usable, allowed, None, waiting)
    in_use = load()
    within = min(usable, math.ceil(allowed)) if allowed is not None else usable
    free = max(1, usable - math.floor((in_use or 0.0) + 0.5))
    threads, why = within, _LIMIT if within < usable else _CORES
    if free < within:
        threads, why = free, _LOAD
    return ThreadPlan(threads, why, usable, allowed, in_use, waiting)


def set_threads(plan: ThreadPlan, environment: MutableMapping[str, str]) -> None:
    """Write the plan into the environment, which OpenMP reads when torch loads it. What the user
    set there stays."""
    own: list[str] = []
    if plan.waiting == SLEEP:
        environment.update(_SOON_SLEEPING)
        own += _SOON_SLEEPING
    # Without a reason to use fewer, torch's own default stays: a thread for each physical core.
    if plan.why in (_LOAD, _LIMIT, "--threads"):
        names = _COUNT_NAMES if plan.why == "--threads" else _COUNT_NAMES[:1]
        environment.update(dict.fromkeys(names, str(plan.threads)))
        own += names
    environment[_SET_BY_OTTER] = ",".join(own)


def _forget_earlier(environment: MutableMapping[str, str]) -> None:
    """Remove what an otter that started this process set for itself."""
    for name in environment.pop(_SET_BY_OTTER, "").split(","):
        environment.pop(name, None)


def prepare_threads(requested: int | None = None) -> ThreadPlan | None:
    """Decide the threads of this process before torch is loaded, and return the plan.

    Once torch is loaded, only a number that is `requested` still counts; then there is no plan.
    """
    torch = sys.modules.get("torch")
    if torch is not None:
        if requested is not None:
            torch.set_num_threads(requested)
        return None
    _forget_earlier(os.environ)
    plan = plan_threads(os.environ, requested)
    set_threads(plan, os.environ)
    return plan
