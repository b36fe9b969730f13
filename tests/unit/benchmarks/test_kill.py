"""SIGKILL at any moment loses at most the generation in flight."""

import random
from pathlib import Path

import pytest

from tests.support.benchmark_kills import kill_runs
from tests.support.benchmark_models import BenchmarkModels


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_with_the_same_samples(
    contestants: BenchmarkModels, tmp_path: Path
) -> None:
    found = kill_runs(contestants, tmp_path, 4, random.Random(0))
    assert found["killed"] >= 4 and found["byte-equal runs"] == found["runs"] >= 1
