import ctypes
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallopt"), reason="this C library has no mallopt"
)

# A process of its own: what one before it did to the heap would be seen here.
FAULTS = """
import resource, sys
import numpy as np
from contextlib import nullcontext
from otter_cli.core.heap import freed_memory_kept

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [np.ones(2**19) for _ in range(32)]  # 4 MiB each
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

with freed_memory_kept() if sys.argv[1] == "kept" else nullcontext():
    for _ in range(3):
        faults()
    inside = faults(), resident()
print(*inside, resident())
"""


def _faults(how: str) -> tuple[int, int, int]:
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, check=True)
    again, inside, after = map(int, done.stdout.split())
    return again, inside, after


def test_pages_of_freed_memory_are_asked_for_once_and_given_back() -> None:
    again, inside, after = _faults("kept")
    usually, *_ = _faults("not kept")

    assert again < usually // 10
    assert after < inside - 100 * 2**20
