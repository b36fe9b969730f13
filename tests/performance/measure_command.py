"""A command's time and memory, measured from outside: it may be of any language."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_EVERY_SECONDS = 0.005


@dataclass(frozen=True)
class Measured:
    """`cpu_seconds`: user and system, of all its threads; `anonymous_bytes`: the peak of what is
    the process's own, file pages apart, seen every 5 ms; `resident_bytes`: the kernel's own peak
    of all, mapped files too, as last seen."""

    seconds: float
    cpu_seconds: float
    anonymous_bytes: int
    resident_bytes: int
    output: str


def measure(
    command: Sequence[str],
    log: Path,
    environment: dict[str, str] | None = None,
    every: float = _EVERY_SECONDS,
) -> Measured:
    """Runs `command` to its end; RuntimeError with the end of its output when it fails.

    Memory is seen `every` so many seconds. Seldom is kinder to a command that uses all cores:
    its threads spin while they wait for the one that makes room for this process.
    """
    with open(log, "w+", encoding="utf-8") as told:
        start = time.perf_counter()
        child = subprocess.Popen(command, stdout=told, stderr=subprocess.STDOUT, env=environment)
        anonymous = resident = 0
        while True:
            ended, status, usage = os.wait4(child.pid, os.WNOHANG)
            if ended:
                break
            memory = _memory(child.pid)
            anonymous = max(anonymous, memory.get("RssAnon", 0))
            resident = max(resident, memory.get("VmHWM", 0))
            time.sleep(every)
        seconds = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        told.seek(0)
        text = told.read()
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {child.returncode}:\n{text[-2000:]}")
    return Measured(seconds, usage.ru_utime + usage.ru_stime, anonymous, resident, text)


def forget(folder: Path) -> None:
    """Have the next reader of these files go to the disk: no root is needed for one's own pages."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _memory(pid: int) -> dict[str, int]:
    """Fields of /proc/PID/status in bytes. ru_maxrss would count the parent's, from the fork."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    pairs = (line.split(":") for line in lines if line.endswith(" kB"))
    return {name: int(value.split()[0]) * 1024 for name, value in pairs}
