"""Contestants of one session, and the grafts loaded."""

from pathlib import Path

import pytest

from otter_cli.benchmarks.models import Grafted, load_pair
from tests.support.contestants import Contestants, write_contestants


@pytest.fixture(scope="session")
def contestants(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Contestants:
    return write_contestants(tiny_llama, tmp_path_factory.mktemp("contestants"))


@pytest.fixture(scope="session")
def grafts(contestants: Contestants) -> tuple[Grafted, Grafted]:
    return load_pair(contestants.graft, contestants.head, "reward")
