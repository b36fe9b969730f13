"""Contestants of one session, and the grafts loaded."""

from pathlib import Path

import pytest

from otter_cli.benchmarks.model_pool import load_graft_and_task_head
from otter_cli.scorers.load import LoadedGraft
from tests.support.benchmark_models import BenchmarkModels, write_benchmark_models


@pytest.fixture(scope="session")
def contestants(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> BenchmarkModels:
    return write_benchmark_models(tiny_llama, tmp_path_factory.mktemp("contestants"))


@pytest.fixture(scope="session")
def grafts(contestants: BenchmarkModels) -> tuple[LoadedGraft, LoadedGraft]:
    return load_graft_and_task_head(contestants.graft, contestants.head, "reward")
