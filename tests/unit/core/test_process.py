import ctypes
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from otter_cli.core.process import derive_seed, seed_everything


def test_seeds_are_the_same_in_every_process() -> None:
    code = "from otter_cli.core.process import derive_seed; print(derive_seed('train', 7, 'data'))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(other.stdout) == derive_seed("train", 7, "data")


def test_seeds_tell_their_parts_apart() -> None:
    seeds = {derive_seed(*parts) for parts in [("ab", "c"), ("a", "bc"), ("abc",), ("a", "b", "c")]}
    assert len(seeds) == 4


def test_seeds_fit_63_bits() -> None:
    seeds = [derive_seed(number) for number in range(1000)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62


def test_every_generator_is_seeded() -> None:
    def draw() -> tuple[float, float, float]:
        seed_everything(derive_seed("draw"))
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    first, second = draw(), draw()
    assert first == second


pytestmark = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallopt"), reason="this C library has no mallopt"
)

# In a new process, because earlier tests change the heap.
FAULTS = """
import resource, sys
import numpy as np
from contextlib import nullcontext
from otter_cli.core.process import keep_freed_memory as freed_memory_kept

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.ones(2**19) for _ in range(32)]  # 4 MiB each
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
