"""SIGKILL at any moment loses at most the generation in flight."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from otter_cli.benchmarks.run import run
from tests.unit.benchmarks.toys import toy_benchmark

SLOW_RUN = """
import sys, time
from pathlib import Path
from otter_cli.benchmarks.run import run
from tests.unit.benchmarks.toys import ToyMethod, toy_benchmark

class Slow(ToyMethod):
    def __call__(self, prompts, sampling):
        time.sleep(0.01)
        return super().__call__(prompts, sampling)

generate = {"plain": Slow(), "dull": Slow(words=2)}
print("ready", flush=True)
run(toy_benchmark(prompts=8, repeats=6, generate=generate), Path(sys.argv[1]))
"""


def killed_after(seconds: float, folder: Path, root: Path) -> bool:
    """Whether the run was still going when it was killed."""
    child = subprocess.Popen(
        [sys.executable, "-c", SLOW_RUN, str(folder)],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert child.stdout is not None and child.stdout.readline()
    time.sleep(seconds)
    child.send_signal(signal.SIGKILL)
    return child.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_with_the_same_samples(
    tmp_path: Path, repository: Path
) -> None:
    whole = run(toy_benchmark(prompts=8, repeats=6), tmp_path / "whole").folder / "samples.jsonl"
    path = tmp_path / "run" / "samples.jsonl"
    rng, kills, before = random.Random(0), 0, b""
    while kills < 5 and killed_after(rng.uniform(0.02, 0.25), tmp_path / "run", repository):
        kills += 1
        there = path.read_bytes() if path.exists() else b""
        # Whole lines stay as they were; only a torn last one may be made again.
        assert there.startswith(before[: before.rfind(b"\n") + 1])
        before = there
    run(toy_benchmark(prompts=8, repeats=6), tmp_path / "run")
    assert kills and path.read_bytes() == whole.read_bytes()
