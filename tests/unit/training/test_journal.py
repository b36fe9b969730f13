"""TensorBoard's curves beside metrics.jsonl, and what is told where it is not installed."""

import sys
from pathlib import Path

import pytest

from otter_cli.core.errors import OtterError
from otter_cli.training import train
from tests.support.training import ctrl_c_in_step, small_recipe


def test_the_curves_are_those_of_the_metrics_file(folder: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    recipe = small_recipe(tmp_path, evaluate_every=3)
    with ctrl_c_in_step(4):
        train(folder, recipe, tensorboard=True)
    result = train(folder, recipe, resume=True, tensorboard=True)
    board = accumulator.EventAccumulator(str(folder / "training" / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("loss/reward")] == [1, 2, 3, 4, 5, 6]
    last = board.Scalars("evaluation/reward/accuracy")[-1]
    assert last.value == pytest.approx(result.signals["reward"]["accuracy"].mean)


def test_without_tensorboard_it_is_told_before_anything_runs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(OtterError, match="the package tensorboard, which is not") as caught:
        train(folder, small_recipe(tmp_path), tensorboard=True)
    assert "pip install tensorboard" in caught.value.hint
    assert not (folder / "training").exists()
