"""Data of a recipe: held out by text, overlap told, truncation refused, digests recorded."""

import json
from pathlib import Path
from typing import Any

import pytest

from otter_cli.core.digests import sha256_file
from otter_cli.core.errors import OtterError
from otter_cli.signals.config import parse_signal
from otter_cli.training.recipe import load_recipe
from otter_cli.training.signal_data import SignalData, load_signal_data
from tests.support.training import FUTURE, REWARD, TOXICITY, write_data, write_recipe

SIGNALS = {"reward": "reward", "toxicity": "toxicity", "future": "future:2"}


def _load(
    folder: Path, tokenizer: Any, name: str, section: dict[str, Any], **settings: Any
) -> SignalData:
    recipe = load_recipe(write_recipe(folder, {name: section}, **settings))
    return load_signal_data(name, recipe, parse_signal(SIGNALS[name]), tokenizer)


@pytest.mark.parametrize(
    ("name", "section"), [("reward", REWARD), ("toxicity", TOXICITY), ("future", FUTURE)]
)
def test_rows_are_held_out_once_and_for_all(
    tmp_path: Path, tiny_tokenizer: Any, name: str, section: dict[str, Any]
) -> None:
    write_data(tmp_path)
    one = _load(tmp_path, tiny_tokenizer, name, section)
    record = one.record
    assert record["train"]["rows"] + record["test"]["rows"] == 64
    assert 2 <= record["test"]["rows"] <= 26
    assert record == _load(tmp_path, tiny_tokenizer, name, section, seed=5).record
    assert record["train"]["sha256"] == sha256_file(tmp_path / section["train"]["path"])


def test_equal_texts_are_on_the_same_side(tmp_path: Path, tiny_tokenizer: Any) -> None:
    rows = [{"chosen": f"good {i % 8}", "rejected": f"bad {i % 8}"} for i in range(80)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    record = _load(tmp_path, tiny_tokenizer, "reward", {**REWARD, "held_out": 0.4}).record
    assert record["test"]["rows"] % 10 == 0
    assert record["shared"] == 0


def test_shared_texts_are_counted_and_told(
    tmp_path: Path, tiny_tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    write_data(tmp_path)
    section = {**REWARD, "held_out": None, "test": {"path": "pairs.jsonl", "limit": 10}}
    record = _load(tmp_path, tiny_tokenizer, "reward", section).record
    assert record["shared"] == 10
    assert "10 of 10 test rows share a text" in capsys.readouterr().err


def test_nothing_held_out_means_no_test(tmp_path: Path, tiny_tokenizer: Any) -> None:
    write_data(tmp_path)
    found = _load(tmp_path, tiny_tokenizer, "reward", {**REWARD, "held_out": None})
    assert found.test is None and "test" not in found.record


def test_too_much_truncation_is_refused_unless_allowed(tmp_path: Path, tiny_tokenizer: Any) -> None:
    write_data(tmp_path)
    with pytest.raises(OtterError, match="longer than 10 tokens"):
        _load(tmp_path, tiny_tokenizer, "reward", REWARD, max_length=10)
    found = _load(tmp_path, tiny_tokenizer, "reward", REWARD, max_length=10, allow_truncation=1)
    assert found.record["train"]["cut"] > 0
    assert max(found.train.lengths) == 10


def test_too_few_rows_to_hold_out(tmp_path: Path, tiny_tokenizer: Any) -> None:
    write_data(tmp_path, rows=2)
    with pytest.raises(OtterError, match="leaves 2 to train on and 0 to test"):
        _load(tmp_path, tiny_tokenizer, "reward", {**REWARD, "held_out": 0.0001})


def test_labels_must_be_as_many_as_the_signal_has(tmp_path: Path, tiny_tokenizer: Any) -> None:
    write_data(tmp_path)
    section = {**TOXICITY, "train": {"path": "labelled.jsonl", "labels": ["toxicity"] * 2}}
    with pytest.raises(OtterError, match="2 labels a text; signal 'toxicity' has 1"):
        _load(tmp_path, tiny_tokenizer, "toxicity", section)


def test_a_batch_depends_on_seed_and_step_alone(tmp_path: Path, tiny_tokenizer: Any) -> None:
    write_data(tmp_path)
    one, other = (_load(tmp_path, tiny_tokenizer, "reward", REWARD) for _ in range(2))
    reseeded = _load(tmp_path, tiny_tokenizer, "reward", REWARD, seed=1)
    assert [one.order.rows(i) for i in range(20)] == [other.order.rows(i) for i in range(20)]
    assert [one.order.rows(i) for i in range(20)] != [reseeded.order.rows(i) for i in range(20)]


def test_a_signal_can_have_its_own_batch_size(tmp_path: Path, tiny_tokenizer: Any) -> None:
    write_data(tmp_path)
    found = _load(tmp_path, tiny_tokenizer, "reward", {**REWARD, "batch_size": 3})
    assert len(found.batch(0).last) == 6


def test_data_may_be_in_a_folder_that_the_user_names(tmp_path: Path, tiny_tokenizer: Any) -> None:
    (tmp_path / "elsewhere").mkdir()
    write_data(tmp_path / "elsewhere")
    recipe = load_recipe(write_recipe(tmp_path), data=tmp_path / "elsewhere")
    assert load_signal_data("reward", recipe, parse_signal("reward"), tiny_tokenizer).train.lengths
