"""Whole runs: what a folder says after one, and which runs are refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from otter_cli.checkpoint.folder import MANIFEST
from otter_cli.core.errors import CheckFailed, OtterError
from otter_cli.core.jsonlines import read_jsonlines
from otter_cli.graft.manifest import Manifest
from otter_cli.graft.storage import TENSORS_FILE
from otter_cli.model.load import load_tokenizer
from otter_cli.training.loop import TrainingRun
from otter_cli.training.run import train
from otter_cli.training.signal_data import load_signal_data
from otter_cli.training.trainable import GraftTrainable
from tests.support.training import (
    FUTURE,
    REWARD,
    TOXICITY,
    ctrl_c_in_step,
    small_graft,
    small_recipe,
)

JOINT = {"reward": REWARD, "toxicity": TOXICITY, "future": FUTURE}


def test_a_reward_is_learnt_and_the_folder_reproduces_its_figure(
    folder: Path, tmp_path: Path
) -> None:
    recipe = small_recipe(tmp_path, steps=40, learning_rate=0.02)
    result = train(folder, recipe)
    accuracy = result.signals["reward"]["accuracy"]
    assert accuracy.mean == 1.0 and accuracy.n == result.data["reward"]["test"]["rows"]
    trainable = GraftTrainable(folder, recipe)
    material = load_signal_data(
        "reward", recipe, trainable.signals["reward"], load_tokenizer(folder)
    )
    from otter_cli.training.evaluation import evaluate

    assert material.test is not None
    again = evaluate(
        recipe.signals["reward"],
        trainable.signals["reward"],
        trainable.reader("reward"),
        material.test,
        recipe.batch_size,
    )
    assert again["accuracy"] == accuracy


def test_the_record_in_otter_json(folder: Path, tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, seed=7)
    result = train(folder, recipe)
    record = Manifest.read(folder).training["reward"]
    assert (record.steps, record.seed, record.objective) == (6, 7, "bradley-terry")
    assert record.recipe_sha256 == recipe.sha256()
    assert record.data == result.data["reward"]
    assert record.metrics["accuracy"] == vars(result.signals["reward"]["accuracy"])


def test_signals_are_trained_jointly(tiny_llama: Path, tmp_path: Path) -> None:
    folder = small_graft(tiny_llama, tmp_path / "graft", "reward", "toxicity", "future:2")
    result = train(folder, small_recipe(tmp_path, JOINT, steps=60, learning_rate=0.02))
    figures = {name: next(iter(f.values())).mean for name, f in result.signals.items()}
    assert figures["reward"] > 0.9 and figures["toxicity"] > 0.9
    # The texts go on as xyzxyz...: the token after next is certain, but a guess at first.
    assert figures["future"] > 0.5
    assert set(Manifest.read(folder).training) == set(JOINT)
    first = next(read_jsonlines(folder / "training" / "metrics.jsonl"))
    assert set(first["loss"]) == set(JOINT)


def test_signals_can_be_trained_one_after_the_other(tiny_llama: Path, tmp_path: Path) -> None:
    folder = small_graft(tiny_llama, tmp_path / "graft", "reward", "toxicity")
    recipe = small_recipe(tmp_path, {"reward": REWARD, "toxicity": TOXICITY})
    train(folder, recipe.only(["reward"]))
    train(folder, recipe.only(["toxicity"]))
    assert set(Manifest.read(folder).training) == {"reward", "toxicity"}


def test_every_step_is_logged(folder: Path, tmp_path: Path) -> None:
    train(folder, small_recipe(tmp_path, evaluate_every=2))
    records = list(read_jsonlines(folder / "training" / "metrics.jsonl"))
    steps = [record for record in records if "loss" in record]
    assert [record["step"] for record in steps] == [1, 2, 3, 4, 5, 6]
    assert all(record["tokens"] > 0 and record["seconds"] > 0 for record in steps)
    evaluated = [record["step"] for record in records if "evaluation" in record]
    assert evaluated == [2, 4, 6]


def test_future_heads_come_nearer_to_the_base(tiny_llama: Path, tmp_path: Path) -> None:
    folder = small_graft(tiny_llama, tmp_path / "graft", "future:2")
    section = {**FUTURE, "targets": "base"}
    train(folder, small_recipe(tmp_path, {"future": section}, steps=40, learning_rate=0.02))
    log = read_jsonlines(folder / "training" / "metrics.jsonl")
    losses = [record["loss"]["future"] for record in log if "loss" in record]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_ctrl_c_saves_the_whole_step(folder: Path, tmp_path: Path) -> None:
    before = (folder / TENSORS_FILE).read_bytes()
    recipe = small_recipe(tmp_path, save_every=100)
    with ctrl_c_in_step(3):
        train(folder, recipe)
    assert (folder / TENSORS_FILE).read_bytes() != before
    record = Manifest.read(folder).training["reward"]
    assert record.steps == 3 and not record.metrics
    with pytest.raises(OtterError, match="unfinished run, at step 3 of 6"):
        train(folder, recipe)
    assert train(folder, recipe, resume=True).steps == 6
    steps = [
        record["step"]
        for record in read_jsonlines(folder / "training" / "metrics.jsonl")
        if "loss" in record
    ]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_restart_drops_an_unfinished_run(folder: Path, tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    with ctrl_c_in_step(3):
        train(folder, recipe)
    assert train(folder, recipe, restart=True).steps == 6
    records = read_jsonlines(folder / "training" / "metrics.jsonl")
    assert [record["step"] for record in records if "loss" in record] == [1, 2, 3, 4, 5, 6]


def test_resume_of_nothing_begins(folder: Path, tmp_path: Path) -> None:
    assert train(folder, small_recipe(tmp_path), resume=True).steps == 6


def test_resume_of_a_finished_run_gives_its_figures_again(folder: Path, tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    first = train(folder, recipe)
    tensors = (folder / TENSORS_FILE).read_bytes()
    assert train(folder, recipe, resume=True).signals == first.signals
    assert (folder / TENSORS_FILE).read_bytes() == tensors


@pytest.mark.parametrize(
    ("changes", "key"),
    [({"learning_rate": 0.5}, "recipe.learning_rate = 0.01"), ({"steps": 9}, "recipe.steps = 6")],
)
def test_resume_with_another_recipe_is_refused(
    folder: Path, tmp_path: Path, changes: dict[str, Any], key: str
) -> None:
    train(folder, small_recipe(tmp_path))
    with pytest.raises(OtterError, match=key):
        train(folder, small_recipe(tmp_path, **changes), resume=True)


def test_resume_with_other_data_is_refused(folder: Path, tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    train(folder, recipe)
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(pairs.read_text() + json.dumps({"chosen": "a", "rejected": "b"}) + "\n")
    with pytest.raises(OtterError, match=r"data\.reward\.\w+\.\w+ = "):
        train(folder, recipe, resume=True)


def test_resume_may_evaluate_more_often(folder: Path, tmp_path: Path) -> None:
    train(folder, small_recipe(tmp_path))
    assert train(folder, small_recipe(tmp_path, evaluate_every=1), resume=True).steps == 6


def test_a_run_that_breaks_stops_and_keeps_the_last_good_state(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    before = (folder / TENSORS_FILE).read_bytes()
    take_step = TrainingRun.take_step

    def poisoned(run: TrainingRun) -> dict[str, Any]:
        if run.step == 5:
            with torch.no_grad():
                next(iter(run.trainable.parameters.values())).fill_(torch.nan)
        return take_step(run)

    monkeypatch.setattr(TrainingRun, "take_step", poisoned)
    with pytest.raises(CheckFailed, match=r"stopped at step 6: the loss is nan.* in otter\.main"):
        train(folder, small_recipe(tmp_path, steps=10))
    assert (folder / TENSORS_FILE).read_bytes() == before
    monkeypatch.undo()
    assert train(folder, small_recipe(tmp_path, steps=10), resume=True).steps == 10


def test_a_rate_that_blows_up_leaves_a_folder_that_loads(folder: Path, tmp_path: Path) -> None:
    from otter_cli.model.otter import OtterForCausalLM

    recipe = small_recipe(tmp_path, steps=60, learning_rate=1e18, clip=1e18, warmup=0)
    with pytest.raises(CheckFailed, match="training stopped at step"):
        train(folder, recipe)
    assert OtterForCausalLM.from_pretrained(folder)


def test_two_runs_on_one_folder_do_not_mix(folder: Path, tmp_path: Path) -> None:
    from otter_cli.core.atomic import writer_lock

    (folder / "training").mkdir()
    with writer_lock(folder / "training"), pytest.raises(OtterError, match="locked"):
        train(folder, small_recipe(tmp_path))


def test_a_folder_that_is_no_graft(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(OtterError, match=f"holds no {MANIFEST}"):
        train(tiny_llama, small_recipe(tmp_path))
    with pytest.raises(OtterError, match="does not exist"):
        train(tmp_path / "nowhere", small_recipe(tmp_path))
    assert not (tiny_llama / "training").exists()
