"""What a recipe's data must be before the first step, and what is told of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from otter_cli.core.errors import OtterError
from otter_cli.data.summary import summarise
from otter_cli.signals.config import parse_signal
from otter_cli.training.objectives.objective import Objective
from otter_cli.training.recipe import load_recipe
from otter_cli.training.run import train
from otter_cli.training.signal_data import SignalData, load_signal_data
from tests.support.training import REWARD, small_graft, write_recipe

LONG = "the same words again "


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _load(
    folder: Path, tokenizer: Any, signal: str, section: dict[str, Any], **settings: Any
) -> SignalData:
    config = parse_signal(signal)
    recipe = load_recipe(write_recipe(folder, {config.name: section}, **settings))
    return load_signal_data(config.name, recipe, config, tokenizer)


def _classes(train: str = "train.jsonl", **section: Any) -> dict[str, Any]:
    return {"objective": "classification", "train": {"path": train}, **section}


def _pairs(alike: int, apart: int) -> list[dict[str, str]]:
    """Pairs that a limit of tokens makes the same, and others."""
    ends = 4 * LONG
    return [{"chosen": f"a {i} {ends}", "rejected": f"b {i} {ends}"} for i in range(alike)] + [
        {"chosen": f"nice {i}", "rejected": f"rude {i}"} for i in range(apart)
    ]


def test_pairs_that_a_cut_makes_identical_are_left_out_and_counted(
    tmp_path: Path, tiny_tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    _write(tmp_path / "pairs.jsonl", _pairs(3, 9))
    _write(tmp_path / "test.jsonl", _pairs(1, 4))
    section = {**REWARD, "held_out": None, "test": {"path": "test.jsonl"}}
    found = _load(tmp_path, tiny_tokenizer, "reward", section, allow_truncation=1)
    assert found.record["train"]["identical"] == 3 and found.record["train"]["rows"] == 9
    assert found.record["test"]["identical"] == 1 and found.record["test"]["rows"] == 4
    assert found.test is not None and len(found.test.lengths) == 4
    batch = found.train.batch(range(9))
    chosen, rejected = batch.input_ids.chunk(2)
    assert (chosen != rejected).any(-1).all()
    told = " ".join(capsys.readouterr().err.split())
    assert "3 of 12 pairs are identical in the tokens that are read, and are left out" in told
    assert "test rows: 1 of 5 pairs are identical" in told


def test_training_leaves_out_the_equal_pairs_that_data_check_says_it_leaves_out(
    tmp_path: Path, tiny_tokenizer: Any
) -> None:
    equal = [{"chosen": f"same {i}", "rejected": f"same {i}"} for i in range(2)]
    file = _write(tmp_path / "pairs.jsonl", [*_pairs(0, 6), *equal])
    found = _load(tmp_path, tiny_tokenizer, "reward", {**REWARD, "held_out": None})
    assert found.record["train"]["identical"] == summarise(file).identical == 2
    assert found.record["train"]["rows"] == len(found.train.lengths) == 6


@pytest.mark.parametrize(("alike", "apart"), [(6, 0), (6, 4)])
def test_a_file_of_identical_pairs_is_refused(
    tmp_path: Path, tiny_tokenizer: Any, alike: int, apart: int
) -> None:
    _write(tmp_path / "pairs.jsonl", _pairs(alike, apart))
    section = {**REWARD, "held_out": None}
    with pytest.raises(OtterError, match=f"6 of {alike + apart} pairs are identical") as caught:
        _load(tmp_path, tiny_tokenizer, "reward", section, allow_truncation=1)
    assert "max_length" in caught.value.hint


def test_margins_stay_with_their_pairs(tmp_path: Path, tiny_tokenizer: Any) -> None:
    rows = [{**row, "by": i} for i, row in enumerate(_pairs(2, 3))]
    _write(tmp_path / "pairs.jsonl", rows)
    section = {**REWARD, "held_out": None, "train": {"path": "pairs.jsonl", "margin": "by"}}
    found = _load(tmp_path, tiny_tokenizer, "reward", section, allow_truncation=1)
    labels = found.train.batch(range(3)).labels
    assert labels is not None and labels.flatten().tolist() == [2, 3, 4]


BOTH = [{"text": f"text {i}", "a": i % 2, "b": i % 3 == 0} for i in range(12)]
CONSTANT = [{"text": f"other {i}", "a": 1, "b": i % 2} for i in range(6)]


@pytest.mark.parametrize("where", ["test", "held_out", "validation"])
@pytest.mark.parametrize("signal", ["a=classes:a", "toxicity=classes:a,b"])
def test_rows_of_one_class_are_refused_before_anything_is_made(
    tiny_llama: Path, tmp_path: Path, where: str, signal: str
) -> None:
    """They died at the first evaluation, and again at --resume."""
    _write(tmp_path / "both.jsonl", BOTH)
    _write(tmp_path / "one.jsonl", CONSTANT)
    section = {
        "test": _classes("both.jsonl", test={"path": "one.jsonl"}),
        "held_out": _classes("one.jsonl", held_out=0.5),
        "validation": _classes("one.jsonl", test={"path": "both.jsonl"}, validation=0.5),
    }[where]
    folder = small_graft(tiny_llama, tmp_path / "graft", signal)
    name = parse_signal(signal).name
    recipe = load_recipe(write_recipe(tmp_path, {name: section}))
    with pytest.raises(OtterError, match="all of the [0-9]+ .* rows have label 'a', and AUROC"):
        train(folder, recipe)
    assert not (folder / "training").exists()


@pytest.mark.parametrize(
    ("signal", "objective"),
    [
        ("v=value", {"objective": "pointwise"}),
        ("q=action-reward", {"objective": "action-values"}),
        ("q=action-reward", {"objective": "action-consistency"}),
    ],
)
def test_a_constant_label_is_refused_where_it_is_tested(
    tmp_path: Path, tiny_tokenizer: Any, signal: str, objective: dict[str, Any]
) -> None:
    _write(tmp_path / "both.jsonl", BOTH)
    _write(tmp_path / "one.jsonl", CONSTANT)
    files = {"train": {"path": "both.jsonl", "labels": ["a"]}, "test": {"path": "one.jsonl"}}
    with pytest.raises(OtterError, match="is 1 in all 6 test rows"):
        _load(tmp_path, tiny_tokenizer, signal, {**objective, **files})


TRL = [
    {"prompt": f"Question {i}? ", "chosen": f"yes {i}", "rejected": f"no {i}", "id": i, "by": "me"}
    for i in range(8)
]


def test_a_prompt_column_goes_before_both_answers_by_itself(
    tmp_path: Path, tiny_tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    _write(tmp_path / "pairs.jsonl", TRL)
    section = {**REWARD, "held_out": None}
    written = {**section, "train": {"path": "pairs.jsonl", "prompt": "prompt"}}
    none = {**section, "train": {"path": "pairs.jsonl", "prompt": None}}
    by_itself = _load(tmp_path, tiny_tokenizer, "reward", section)
    told = " ".join(capsys.readouterr().err.split())
    assert "prompt: prompt; columns that are not read: 'id', 'by'" in told
    assert by_itself.record["train"]["ignored"] == ["id", "by"]
    assert by_itself.record["train"]["columns"] == {"prompt": "prompt"}
    assert (
        by_itself.train.lengths == _load(tmp_path, tiny_tokenizer, "reward", written).train.lengths
    )
    without = _load(tmp_path, tiny_tokenizer, "reward", none)
    assert "columns" not in without.record["train"]
    assert without.record["train"]["ignored"] == ["prompt", "id", "by"]
    assert sum(without.train.lengths) < sum(by_itself.train.lengths)


CLASSES = "tone=classes:bad,good"


@pytest.mark.parametrize(
    "values",
    [["good", "bad"], [1, 0], [True, False], ["1", "0"], [["good"], ["bad"]], [1.0, 0.0]],
    ids=["names", "numbers", "truth values", "digits", "lists", "floats"],
)
@pytest.mark.parametrize("column", ["label", "class", "verdict"])
def test_a_column_of_class_names_needs_no_mapping(
    tmp_path: Path, tiny_tokenizer: Any, values: list[Any], column: str
) -> None:
    rows = [{"text": f"text {i}", column: values[i % 2]} for i in range(6)]
    _write(tmp_path / "train.jsonl", rows)
    named = {"labels": [column]} if column == "verdict" else {}
    section = _classes(train="train.jsonl")
    section["train"].update(named)
    found = _load(tmp_path, tiny_tokenizer, CLASSES, section)
    labels = found.train.batch(range(6)).labels
    assert labels is not None and labels.tolist() == [[0.0, 1.0], [1.0, 0.0]] * 3


def test_several_classes_at_once_and_a_stranger(tmp_path: Path, tiny_tokenizer: Any) -> None:
    rows = [{"text": "a", "label": ["x", "z"]}, {"text": "b", "label": []}]
    _write(tmp_path / "train.jsonl", rows)
    found = _load(tmp_path, tiny_tokenizer, "tone=classes:x,y,z", _classes())
    labels = found.train.batch(range(2)).labels
    assert labels is not None and labels.tolist() == [[1, 0, 1], [0, 0, 0]]
    for value in ("god", 2, -1, None, 0.5):
        _write(
            tmp_path / "train.jsonl", [{"text": "a", "label": "bad"}, {"text": "b", "label": value}]
        )
        with pytest.raises(OtterError, match="line 2: 'label' is .*none of the classes bad, good"):
            _load(tmp_path, tiny_tokenizer, CLASSES, _classes())


def test_two_label_columns_are_an_error_that_names_both(
    tmp_path: Path, tiny_tokenizer: Any
) -> None:
    _write(tmp_path / "train.jsonl", [{"text": "a", "label": 1, "class": 0}] * 2)
    with pytest.raises(OtterError, match="'label' and 'class' could both be the labels"):
        _load(tmp_path, tiny_tokenizer, CLASSES, _classes())


def test_a_limit_says_which_rows_and_they_decide_the_run(
    tiny_llama: Path, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    _write(
        tmp_path / "pairs.jsonl", [{"chosen": f"g {i}", "rejected": f"b {i}"} for i in range(40)]
    )
    section = {**REWARD, "held_out": None, "train": {"path": "pairs.jsonl", "limit": 8}}
    drawn = _load(tmp_path, tiny_tokenizer, "reward", section).record["train"]["drawn"]
    assert len(drawn["lines"]) == 8 and drawn["lines"] != list(range(1, 9)) and drawn["of"] == 40
    # Another seed of the run is another order, and the same rows.
    assert (
        _load(tmp_path, tiny_tokenizer, "reward", section, seed=3).record["train"]["drawn"] == drawn
    )
    other = {**section, "train": {**section["train"], "limit_seed": 1}}
    assert _load(tmp_path, tiny_tokenizer, "reward", other).record["train"]["drawn"] != drawn


def test_what_was_held_out_is_recorded_and_told(
    tmp_path: Path, tiny_tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"chosen": f"g {i}", "rejected": f"b {i}", "prompt": f"p {i % 15}"} for i in range(30)]
    _write(tmp_path / "pairs.jsonl", rows)
    found = _load(tmp_path, tiny_tokenizer, "reward", {**REWARD, "validation": 0.25})
    known = {k: v for k, v in found.record["held_out"].items() if k not in ("rule", "sha256")}
    assert known == {"share": 0.2, "rows": 6, "of": 30, "groups": 3, "of_groups": 15}
    assert found.record["test"]["rows"] == 6 and found.record["validation"]["rows"] == 6
    told = " ".join(capsys.readouterr().err.split())
    assert "held out: 6 of 30 rows (20.0 %, 20.0 % asked for)" in told
    assert "validation: 6 of 24 rows" in told
    assert "rows that share a prompt or text stay together: 3 of 15 such groups" in told


def test_an_unfinished_run_of_an_older_recipe_goes_on(tiny_llama: Path, tmp_path: Path) -> None:
    """Keys that the recipe did not have then had the values that they have when left out."""
    from otter_cli.training.state import StateFolder, check_same_run, run_identity

    _write(tmp_path / "pairs.jsonl", TRL)
    recipe = load_recipe(write_recipe(tmp_path))
    data = {"reward": {"train": {"path": "pairs.jsonl", "rows": 8}}}
    older = json.loads(json.dumps(run_identity(recipe, data)))
    del older["recipe"]["signals"]["reward"]["train"]["limit_seed"]

    class Stored(StateFolder):
        def metadata(self) -> dict[str, Any]:
            return {"identity": older}

    now = {"reward": {"train": {"path": "pairs.jsonl", "rows": 8, "ignored": ["id"]}}}
    check_same_run(Stored(tmp_path), run_identity(recipe, now))
    now["reward"]["train"]["drawn"] = {"seed": 0}  # type: ignore[assignment]
    with pytest.raises(OtterError, match="drawn"):
        check_same_run(Stored(tmp_path), run_identity(recipe, now))


def test_every_objective_with_a_metric_of_two_classes_checks_its_rows() -> None:
    """`interval` raises where a figure is undefined: an objective that uses AUROC or a correlation
    of labels must say so before the first step."""
    import inspect

    from otter_cli.training import objectives

    assert len(objectives.OBJECTIVES) >= 9
    for kind in objectives.OBJECTIVES:
        source = inspect.getsource(kind.metrics)
        if "auroc" in source or "value_metrics" in source:
            assert kind.check_test_rows is not Objective.check_test_rows, kind
