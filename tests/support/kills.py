"""Processes that are forked from this one, which has everything imported, and killed by SIGKILL."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from otter_cli.core.provenance import provenance


def forked(work: Callable[[], object]) -> int:
    """The id of a child process that does `work` and ends, with exit code 1 if the work raises."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def killed_after(seconds: float, work: Callable[[], object]) -> int:
    """The exit status of a process that does `work`, and is killed if it still runs by then."""
    child = forked(work)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def write_counts(counts: dict[str, Any], path: Path, target: str) -> None:
    """Writes the counts of a run of `make TARGET` with their provenance, and prints them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {**counts, "provenance": provenance(["make", target])}
    path.write_text(json.dumps(record, indent=2) + "\n")
    sys.stdout.write(json.dumps(counts) + "\n")
