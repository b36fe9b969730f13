"""Curves beside metrics.jsonl, and what is told where their package is not installed."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from otter_cli.core.errors import OtterError
from otter_cli.core.jsonlines import read_jsonlines
from otter_cli.training.run import train
from tests.support.training import ctrl_c_in_step, small_recipe


class Logged:
    """Stands in for trackio and wandb: keeps how each run was begun, and what it was told."""

    Error = type("Error", (Exception,), {})

    def __init__(self) -> None:
        self.begun: list[dict[str, Any]] = []
        self.told: list[tuple[int, dict[str, float]]] = []
        self.finished = 0

    def init(self, **options: Any) -> "Logged":
        self.begun.append(options)
        print("begun")
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.told.append((step, values))

    def finish(self) -> None:
        self.finished += 1

    Settings = SimpleNamespace


def test_the_curves_are_those_of_the_metrics_file(folder: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    recipe = small_recipe(tmp_path, evaluate_every=3)
    with ctrl_c_in_step(4):
        train(folder, recipe, log="tensorboard")
    result = train(folder, recipe, resume=True, log="tensorboard")
    board = accumulator.EventAccumulator(str(folder / "training" / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("loss/reward")] == [1, 2, 3, 4, 5, 6]
    last = board.Scalars("evaluation/reward/accuracy")[-1]
    assert last.value == pytest.approx(result.signals["reward"]["accuracy"].mean)


@pytest.mark.parametrize(("log", "named"), [("trackio", "name"), ("wandb", "id")])
def test_a_resumed_run_is_the_same_run_there(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    log: str,
    named: str,
) -> None:
    kept = Logged()
    monkeypatch.setitem(sys.modules, log, kept)
    recipe = small_recipe(tmp_path, evaluate_every=3)
    with ctrl_c_in_step(4):
        train(folder, recipe, log=log)
    train(folder, recipe, resume=True, log=log)
    first, second = kept.begun
    assert first[named] == second[named] and first["resume"] == "allow"
    assert first[named].startswith(folder.name) and first["project"] == "otter"
    assert kept.finished == 2
    assert log == "wandb" or "begun" not in capsys.readouterr().out
    losses = [(step, v["loss/reward"]) for step, v in kept.told if "loss/reward" in v]
    lines = list(read_jsonlines(folder / "training" / "metrics.jsonl"))
    assert losses == [(line["step"], line["loss"]["reward"]) for line in lines if "loss" in line]
    assert [step for step, v in kept.told if "evaluation/reward/accuracy" in v] == [3, 6]
    train(folder, recipe, restart=True, log=log)
    assert kept.begun[-1][named] != first[named]


def test_a_sink_that_does_not_start_says_what_helps(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Locked(Logged):
        def init(self, **options: Any) -> Logged:
            raise self.Error("no key")

    monkeypatch.setitem(sys.modules, "wandb", Locked())
    with pytest.raises(OtterError, match="wandb does not start: no key") as caught:
        train(folder, small_recipe(tmp_path), log="wandb")
    assert "WANDB_MODE=offline" in caught.value.hint


@pytest.mark.parametrize(
    ("log", "module"),
    [("tensorboard", "torch.utils.tensorboard"), ("trackio", "trackio"), ("wandb", "wandb")],
)
def test_without_its_package_it_is_told_before_anything_runs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(OtterError, match=f"the package {log}, which is not") as caught:
        train(folder, small_recipe(tmp_path), log=log)
    assert "pip install 'otter-lm[trackers]'" in caught.value.hint
    assert not (folder / "training").exists()


def test_an_unknown_sink_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OtterError, match="--log knows no 'mlflow'") as caught:
        train(folder, small_recipe(tmp_path), log="mlflow")
    assert "tensorboard, trackio, wandb" in caught.value.hint
