"""The best step by validation rows: kept, gone back to, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from otter_cli.core.errors import OtterError
from otter_cli.core.intervals import Interval
from otter_cli.core.jsonlines import read_jsonlines
from otter_cli.graft.manifest import Manifest
from otter_cli.graft.storage import TENSORS_FILE
from otter_cli.training.evaluation import EarlyStopping
from otter_cli.training.loop import TrainingRun
from otter_cli.training.run import train
from tests.support.training import REWARD, ctrl_c_in_step, small_graft, small_recipe
from tests.support.training_kills import same_tensors

VALIDATED = {"reward": {**REWARD, "validation": 0.2}}
BEST = {"best": "reward/accuracy", "evaluate_every": 2}


def _figures(mean: float, metric: str = "accuracy") -> dict[str, dict[str, Interval]]:
    return {"reward": {metric: Interval(mean, mean, mean, 9)}}


def _seen(recipe: Any, figures: list[float], metric: str = "accuracy") -> EarlyStopping:
    choice = EarlyStopping(recipe)
    for step, figure in enumerate(figures):
        choice.update(step, _figures(figure, metric))
    return choice


def test_the_first_of_equals_is_the_best_and_patience_ends(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, VALIDATED, **BEST, patience=2)
    assert _seen(recipe, [0.5, 0.8, 0.8]).best_step == 1
    assert not _seen(recipe, [0.5, 0.8, 0.7]).should_stop
    assert _seen(recipe, [0.5, 0.8, 0.7, 0.8]).should_stop
    assert not _seen(recipe, [0.5, 0.8, 0.7, 0.9]).should_stop


def test_of_errors_the_smallest_is_the_best(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, VALIDATED, evaluate_every=2, best="reward/squared_error")
    assert _seen(recipe, [0.5, 0.2, 0.3], "squared_error").best_step == 1


@pytest.fixture
def peaking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations whose accuracy peaks at step 4."""
    evaluate = TrainingRun.evaluate

    def peak(run: TrainingRun, journal: Any, *, last: bool = False) -> None:
        evaluate(run, journal, last=last)
        if not last:
            run.metrics = _figures(1 - abs(run.step - 4) / 10)

    monkeypatch.setattr(TrainingRun, "evaluate", peak)


@pytest.mark.usefixtures("peaking")
def test_the_folder_holds_the_best_step_and_its_test_figures(
    tiny_llama: Path, tmp_path: Path
) -> None:
    best, plain = (small_graft(tiny_llama, tmp_path / name) for name in ("best", "plain"))
    recipe = small_recipe(tmp_path, VALIDATED, steps=20, schedule="constant", **BEST, patience=2)
    result = train(best, recipe)
    assert result.steps == 8, "two evaluations after the best one"
    record = Manifest.read(best).training["reward"]
    assert record.steps == 4 and record.metrics["accuracy"]["n"] == record.data["test"]["rows"]
    short = small_recipe(tmp_path, VALIDATED, steps=4, schedule="constant")
    train(plain, short)
    same_tensors(best / TENSORS_FILE, plain / TENSORS_FILE)
    assert [p.name for p in (best / "training").glob("best-*")] == ["best-00000004.safetensors"]


@pytest.mark.usefixtures("peaking")
@pytest.mark.parametrize("step", [3, 7])
def test_a_resumed_run_ends_with_the_same_choice(
    tiny_llama: Path, tmp_path: Path, step: int
) -> None:
    whole, halves = (small_graft(tiny_llama, tmp_path / name) for name in ("one", "two"))
    recipe = small_recipe(tmp_path, VALIDATED, steps=20, **BEST, patience=2)
    train(whole, recipe)
    with ctrl_c_in_step(step):
        train(halves, recipe)
    assert train(halves, recipe, resume=True).steps == 8
    same_tensors(whole / TENSORS_FILE, halves / TENSORS_FILE)
    # Stopped early is finished: it may be trained on, and resumed without another step.
    assert train(halves, recipe, resume=True).steps == 8
    assert train(halves, recipe).steps == 8


def test_validation_rows_are_neither_trained_on_nor_tested(folder: Path, tmp_path: Path) -> None:
    result = train(folder, small_recipe(tmp_path, VALIDATED, **BEST))
    data = result.data["reward"]
    assert sum(data[part]["rows"] for part in ("train", "validation", "test")) == 64
    records = list(read_jsonlines(folder / "training" / "metrics.jsonl"))
    counts = [r["evaluation"]["reward"]["accuracy"]["n"] for r in records if "evaluation" in r]
    assert counts == [data["validation"]["rows"]] * 4 + [data["test"]["rows"]]


@pytest.mark.parametrize(
    ("settings", "what", "hint"),
    [
        ({"patience": 2}, "patience is set without best", "best: SIGNAL/METRIC"),
        ({**BEST, "best": "rewrad/accuracy"}, "names no signal", "of reward"),
        ({"best": "reward/accuracy"}, "best without evaluate_every", "evaluate_every: 50"),
        ({**BEST, "best": "reward/accuracies"}, "no metric 'accuracies'", "mean 'accuracy'"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused(
    folder: Path, tmp_path: Path, settings: dict[str, Any], what: str, hint: str
) -> None:
    with pytest.raises(OtterError, match=what) as caught:
        train(folder, small_recipe(tmp_path, VALIDATED, **settings))
    assert hint in caught.value.hint


def test_test_data_do_not_choose(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OtterError, match="no validation rows to choose by"):
        train(folder, small_recipe(tmp_path, **BEST))
