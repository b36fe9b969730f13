"""Training shows its smoothed loss and the latest held-out metric."""

from pathlib import Path

import pytest

from otter_cli.core.console import set_quiet
from otter_cli.core.intervals import Interval
from otter_cli.core.jsonlines import read_jsonlines
from otter_cli.training.progress_note import SmoothedLoss, metrics_text, progress_note
from otter_cli.training.run import train
from tests.support.grafts import random_graft
from tests.support.training import small_recipe


def interval(mean: float) -> Interval:
    return Interval(mean, mean - 0.1, mean + 0.1, 20)


def test_the_average_starts_at_the_first_loss_and_follows_the_last_ones() -> None:
    loss = SmoothedLoss()
    assert str(loss) == ""
    assert loss.add(2.0) == pytest.approx(2.0)
    losses = [2.0, 1.0, 4.0, 3.0]
    for value in losses[1:]:
        loss.add(value)
    weights = [0.9**k for k in range(4)][::-1]
    expected = sum(w * value for w, value in zip(weights, losses, strict=True)) / sum(weights)
    assert loss.value == pytest.approx(expected)


def test_the_note_has_the_loss_and_one_metric_of_each_signal() -> None:
    loss = SmoothedLoss()
    loss.add(0.5)
    metrics = {"reward": {"accuracy": interval(0.75), "margin": interval(1.5)}}
    assert progress_note(loss, {}, 0) == "smoothed loss 0.500"
    assert progress_note(loss, metrics, 40) == (
        "smoothed loss 0.500; held out at step 40: reward accuracy 0.750"
    )
    assert metrics_text(metrics) == "reward accuracy 0.750, margin 1.500"


def test_a_run_says_its_loss_and_a_fresh_one_goes_on_after_nothing(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_quiet(False)
    folder = random_graft(tiny_llama, tmp_path / "g", hidden=8, heads=2, ffn=16)
    recipe = small_recipe(tmp_path)
    train(folder, recipe, resume=True)
    shown = capsys.readouterr().err
    assert "going on" not in shown
    steps = [r for r in read_jsonlines(folder / "training/metrics.jsonl") if "loss" in r]
    loss = SmoothedLoss()
    for record in steps:
        loss.add(sum(recipe.signals[n].weight * v for n, v in record["loss"].items()))
    assert f"step {recipe.steps} of {recipe.steps}: {loss}" in shown
