"""A limit on time and memory for code from outside, such as a chat template, in any thread."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from otter_cli.core.errors import OtterError

_SECONDS_BETWEEN_LOOKS = 0.05


@contextmanager
def limited(what: str, *, seconds: float, memory: int, hint: str = "") -> Iterator[None]:
    """Raises OtterError inside the block once it takes longer, or the process grows by more.

    Python code stops at its next instruction. A single long operation of a C library is not
    interrupted: the error comes when it ends.
    """
    job = _Job(threading.get_ident(), time.monotonic() + seconds, memory)
    try:
        try:
            _watchdog.add(job)
            yield
        finally:
            _watchdog.remove(job)
    except (_StoppedError, MemoryError) as error:
        limit = f"{memory >> 30} GiB of memory" if job.grown else f"{seconds:g} seconds"
        if isinstance(error, MemoryError):
            limit = "all the memory there is"
        raise OtterError(f"{what} takes more than {limit}", hint=hint) from None


class _StoppedError(BaseException):
    """Not an Exception, so that the code that is stopped does not catch it."""


@dataclass(eq=False)
class _Job:
    thread: int
    deadline: float
    memory: int
    started_with: int | None = None
    grown: bool = False
    stopped: bool = False

    def over(self, resident: int) -> bool:
        if self.started_with is None:
            self.started_with = resident
        self.grown = resident - self.started_with > self.memory
        return self.grown or time.monotonic() > self.deadline


class _Watchdog:
    """One thread that looks at all jobs: a job costs a microsecond, not a thread of its own."""

    def __init__(self) -> None:
        self.jobs: set[_Job] = set()
        self.lock = threading.Lock()
        self.busy = threading.Event()
        self.thread: threading.Thread | None = None

    def add(self, job: _Job) -> None:
        with self.lock:
            self.jobs.add(job)
            if self.thread is None:
                self.thread = threading.Thread(target=self._run, name="limits", daemon=True)
                self.thread.start()
        self.busy.set()

    def remove(self, job: _Job) -> None:
        with self.lock:
            self.jobs.discard(job)
            if job.stopped:
                # Done at the last moment: what was not delivered yet must not arrive later.
                _raise_in(job.thread, None)

    def _run(self) -> None:
        import psutil

        process = psutil.Process()
        while True:
            self.busy.wait()
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            with self.lock:
                if not self.jobs:
                    self.busy.clear()
                    continue
                resident = process.memory_info().rss
                for job in self.jobs:
                    if not job.stopped and job.over(resident):
                        job.stopped = True
                        _raise_in(job.thread, _StoppedError)


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), ctypes.py_object(error) if error else None
    )


def _start_afresh() -> None:
    """A forked child has the jobs of its parent, and not its thread."""
    global _watchdog
    _watchdog = _Watchdog()


_watchdog = _Watchdog()
os.register_at_fork(after_in_child=_start_afresh)
