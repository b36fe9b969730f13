"""Whether this process gets the processor when it wants it, and one warning when it does not.

The kernel counts for each thread how long it ran and how long it waited for a core. Threads that
sleep, read files or wait for a network count neither, so only other work on the machine, or a limit
of the control group, makes the share small.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

# Seconds of work by thread: while it ran, and while it waited for a core.
ThreadTimes = dict[str, tuple[float, float]]

_SECONDS_BETWEEN_CHECKS = 10.0
_LEAST_SECONDS = 3.0  # of work: less says nothing about the machine
_SEVERAL_TIMES = 2.5


def read_thread_times(tasks: Path = Path("/proc/self/task")) -> ThreadTimes:
    """The times of each thread of this process. Nothing where the kernel does not count them."""
    times: ThreadTimes = {}
    try:
        threads = sorted(tasks.iterdir())
    except OSError:
        return times
    for thread in threads:
        try:
            ran, waited, _ = (thread / "schedstat").read_text("ascii").split()
            times[thread.name] = int(ran) / 1e9, int(waited) / 1e9
        except (OSError, ValueError):  # the thread has ended, or the kernel does not count
            continue
    return times


def slowdown(before: ThreadTimes, after: ThreadTimes) -> float | None:
    """How many times as long as alone the work between the two times took: 1 where no thread
    waited. None where there was too little work to say."""
    ran = waited = 0.0
    for thread, (ran_after, waited_after) in after.items():
        ran_before, waited_before = before.get(thread, (0.0, 0.0))
        ran += ran_after - ran_before
        waited += waited_after - waited_before
    if ran <= 0 or ran + waited < _LEAST_SECONDS:
        return None
    return (ran + waited) / ran


class ProcessorShare:
    """Watches the share of one process. A long loop calls `warning` after each of its steps."""

    def __init__(
        self,
        read: Callable[[], ThreadTimes] = read_thread_times,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read, self._clock = read, clock
        self._next = 0.0
        self._times: ThreadTimes | None = None
        self._warned = False

    def start(self) -> None:
        """Forget what came before this loop."""
        if not self._warned:
            self._next, self._times = self._clock() + _SECONDS_BETWEEN_CHECKS, self._read()

    def warning(self) -> str | None:
        """The warning, once, if the last seconds of work took several times their processor
        time."""
        if self._warned or self._times is None or self._clock() < self._next:
            return None
        times = self._read()
        times_as_long = slowdown(self._times, times)
        self._next, self._times = self._clock() + _SECONDS_BETWEEN_CHECKS, times
        if times_as_long is None or times_as_long < _SEVERAL_TIMES:
            return None
        self._warned = True
        return (
            f"other programs use the processor: this work takes {times_as_long:.1f} times its "
            f"processor time; {_cure()}"
        )


def _cure() -> str:
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch is not None else 1
    if os.environ.get("OMP_WAIT_POLICY", "").upper() == "ACTIVE":
        return "unset OMP_WAIT_POLICY, so that waiting threads sleep"
    if threads > 1:
        return f"start it with OMP_NUM_THREADS=1 (it has {threads} threads), or end other programs"
    return "end other programs, or wait until they have ended"


PROCESSOR_SHARE = ProcessorShare()
