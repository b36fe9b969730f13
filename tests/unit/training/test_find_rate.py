"""The rate finder: where the loss falls steepest, and nothing written."""

from pathlib import Path

import numpy as np
import pytest

from otter_cli.core.errors import OtterError
from otter_cli.training.run import find_rate, steepest_rate
from tests.support.training import small_recipe


def test_the_steepest_place_of_a_known_curve() -> None:
    rates = np.geomspace(1e-6, 1, 61)
    falling = 1 / (1 + np.exp(4 * (np.log10(rates) + 3)))
    losses = [*falling, 3.0]
    assert steepest_rate([*rates, 2.0], losses) == pytest.approx(1e-3, rel=0.3)


def test_a_loss_that_never_falls_suggests_nothing() -> None:
    with pytest.raises(OtterError, match="falls at no learning rate") as caught:
        steepest_rate([1e-3, 1e-2, 1e-1], [1.0, 1.1, 1.2])
    assert "objective" in caught.value.hint


def test_a_rate_is_found_that_learns_and_the_folder_stays(folder: Path, tmp_path: Path) -> None:
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    found = find_rate(folder, small_recipe(tmp_path))
    assert 1e-3 < found.suggestion < 1 and found.suggestion in found.rates
    assert found.losses[0] == pytest.approx(np.log(2), abs=1e-3)
    assert min(found.losses) < 0.6
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
