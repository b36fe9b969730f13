"""Settings and limits of the process: seeds, memory, interrupts, and code that is limited.

Seeds are derived from names, so they do not depend on the order of calls. Memory settings
change the speed only, never a result. `resource_limit` stops code from outside, such as a chat
template, that takes too long or too much memory.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from otter_cli.core.errors import OtterError


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from the parts' texts, the same on every machine and in every process."""
    # A separator that no part contains distinguishes ("ab", "c") from ("a", "bc").
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, numpy and, where it is loaded, torch."""
    import numpy as np

    random.seed(seed)
    np.random.seed(seed % 2**32)  # numpy's legacy generator takes 32 bits only
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(seed)


_TRIM, _MMAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
_KEEP_ALL, _DEFAULT = 2**31 - 1, 32 * 2**20  # bytes; glibc's own thresholds grow up to the latter


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Freed memory stays with the process inside the block, and is released at its end.

    A training step frees more memory than glibc keeps, and the next step would request the same
    pages again. Nothing happens under another C library.
    """
    library = ctypes.CDLL(None)
    if not (hasattr(library, "mallopt") and hasattr(library, "malloc_trim")):
        yield
        return
    library.mallopt(_TRIM, _KEEP_ALL)
    library.mallopt(_MMAP, _KEEP_ALL)
    try:
        yield
    finally:
        library.mallopt(_TRIM, 2 * _DEFAULT)
        library.mallopt(_MMAP, _DEFAULT)
        library.malloc_trim(0)


def release_free_memory() -> None:
    """Return freed memory to the system. Nothing happens where the C library cannot."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether Ctrl-C or SIGTERM came. A second interrupts at once."""
    interrupted = False

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        signal.signal(number, signal.default_int_handler)

    # Only the main thread may set handlers. A run in another thread is not interruptible.
    numbers = [signal.SIGINT, signal.SIGTERM]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    previous = {number: signal.signal(number, remember) for number in numbers}
    try:
        yield lambda: interrupted
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


_SECONDS_BETWEEN_CHECKS = 0.05


@contextmanager
def resource_limit(what: str, *, seconds: float, memory: int, hint: str = "") -> Iterator[None]:
    """Raises OtterError in the block once it takes longer than `seconds`, or once the process has
    grown by more than `memory` bytes. It works in any thread.

    Python code stops at its next instruction. A single long operation of a C library is not
    interrupted: the error is raised when it ends.
    """
    job = _LimitedJob(threading.get_ident(), time.monotonic() + seconds, memory)
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
    """Not an Exception, so that the stopped code does not catch it."""


@dataclass(eq=False)
class _LimitedJob:
    thread: int
    deadline: float
    memory: int
    started_with: int | None = None
    grown: bool = False
    stopped: bool = False

    def exceeds_limit(self, resident: int) -> bool:
        if self.started_with is None:
            self.started_with = resident
        self.grown = resident - self.started_with > self.memory
        return self.grown or time.monotonic() > self.deadline


class _Watchdog:
    """One thread that checks all jobs, so a job costs a microsecond and not a thread of its own."""

    def __init__(self) -> None:
        self.jobs: set[_LimitedJob] = set()
        self.lock = threading.Lock()
        self.busy = threading.Event()
        self.thread: threading.Thread | None = None

    def add(self, job: _LimitedJob) -> None:
        with self.lock:
            self.jobs.add(job)
            if self.thread is None:
                self.thread = threading.Thread(target=self._run, name="limits", daemon=True)
                self.thread.start()
        self.busy.set()

    def remove(self, job: _LimitedJob) -> None:
        with self.lock:
            self.jobs.discard(job)
            if job.stopped:
                # The job ended just before its error was raised, which must not be raised later.
                _raise_in(job.thread, None)

    def _run(self) -> None:
        import psutil

        process = psutil.Process()
        while True:
            self.busy.wait()
            time.sleep(_SECONDS_BETWEEN_CHECKS)
            with self.lock:
                if not self.jobs:
                    self.busy.clear()
                    continue
                resident = process.memory_info().rss
                for job in self.jobs:
                    if not job.stopped and job.exceeds_limit(resident):
                        job.stopped = True
                        _raise_in(job.thread, _StoppedError)


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Raise `error` in a thread at its next instruction. None cancels one that is pending."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), ctypes.py_object(error) if error else None
    )


def _replace_watchdog() -> None:
    """A forked child has its parent's jobs, but not its thread."""
    global _watchdog
    _watchdog = _Watchdog()


_watchdog = _Watchdog()
os.register_at_fork(after_in_child=_replace_watchdog)
