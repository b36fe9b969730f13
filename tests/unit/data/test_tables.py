import shutil
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pytest
from pyarrow import parquet

from otter_cli.core.errors import OtterError
from otter_cli.data.pairs import read_pairs
from otter_cli.data.tables import HubTable, find_data, read_records
from otter_cli.signals.config import parse_signal
from otter_cli.training.recipe import load_recipe
from otter_cli.training.signal_data import load_signal_data
from tests.support.training import REWARD, write_data, write_recipe


def test_beside_the_recipe_goes_before_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, here = tmp_path / "recipes", tmp_path / "here"
    for folder in (beside, here):
        folder.mkdir()
        (folder / "a.jsonl").touch()
    (here / "b.jsonl").touch()
    monkeypatch.chdir(here)
    assert find_data("a.jsonl", beside) == beside / "a.jsonl"
    assert find_data("b.jsonl", beside) == Path("b.jsonl")
    assert find_data("a.jsonl") == Path("a.jsonl")


@pytest.mark.parametrize("name", ["$OTTER_TEST/a.jsonl", "${OTTER_TEST}/a.jsonl"])
def test_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "a.jsonl").touch()
    monkeypatch.setenv("OTTER_TEST", str(tmp_path))
    assert find_data(name, Path("elsewhere")) == tmp_path / "a.jsonl"


def test_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_data("~/a.jsonl") == tmp_path / "a.jsonl"


def test_an_unset_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTTER_TEST", raising=False)
    with pytest.raises(OtterError, match=r"\$OTTER_TEST is not set") as raised:
        find_data("$OTTER_TEST/a.jsonl")
    assert "export OTTER_TEST=" in raised.value.hint


def test_a_missing_file_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(OtterError, match="not found; looked for") as raised:
        find_data("a.jsonl", tmp_path)
    assert str(tmp_path / "a.jsonl") in raised.value.what


ROWS = [{"chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(40)]


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    # Small groups, so that rows are counted across them.
    parquet.write_table(arrow.Table.from_pylist(rows), path, row_group_size=7)
    return path


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the hub holds a dataset: data/SPLIT-00000-of-00001.parquet."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    _write(tmp_path / "hub" / "train-00000-of-00001.parquet", ROWS)
    (tmp_path / "hub" / "data").mkdir()
    shutil.move(tmp_path / "hub" / "train-00000-of-00001.parquet", tmp_path / "hub" / "data")
    _write(tmp_path / "hub" / "data" / "test-00000-of-00001.parquet", ROWS[:10])
    return tmp_path / "hub"


def test_parquet_rows_are_numbered_and_read_as_pairs(tmp_path: Path) -> None:
    path = _write(tmp_path / "pairs.parquet", ROWS)
    assert [pair.chosen for pair in read_pairs(path)] == [row["chosen"] for row in ROWS]
    _write(path, [*ROWS, {"chosen": "x", "rejected": "x"}])
    with pytest.raises(OtterError, match="pairs.parquet, row 41: 'chosen' and 'rejected' are"):
        read_pairs(path)


@pytest.mark.parametrize(
    ("content", "what"),
    [(b"", "the file is empty (0 bytes)"), (b"PAR1 and no more", "pyarrow cannot load the rows")],
)
def test_damaged_parquet_is_refused(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(content)
    with pytest.raises(OtterError) as caught:
        list(read_records(path))
    assert what in caught.value.what and caught.value.hint
    with pytest.raises(OtterError, match="No such file"):
        list(read_records(tmp_path / "missing.parquet"))


def test_a_dataset_trains_and_tests_by_its_splits(
    hub: Path, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    section = {"objective": "bradley-terry", "train": {"dataset": str(hub)}}
    recipe = load_recipe(write_recipe(tmp_path, {"reward": {**section, "test": {"split": "test"}}}))
    found = load_signal_data("reward", recipe, parse_signal("reward"), tiny_tokenizer)
    assert found.record["train"]["rows"] == 40 and found.record["test"]["rows"] == 10
    assert found.record["train"]["split"] == "train" and found.record["shared"] == 10
    again = load_signal_data("reward", recipe, parse_signal("reward"), tiny_tokenizer)
    assert again.record == found.record
    assert found.record["train"]["sha256"] != found.record["test"]["sha256"]


def test_a_test_file_beside_a_training_dataset(
    hub: Path, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    write_data(tmp_path)
    sections = [
        {"train": {"dataset": str(hub)}, "test": {"path": "pairs.jsonl"}},
        {"train": {"path": "pairs.jsonl"}, "test": {"dataset": str(hub), "split": "test"}},
    ]
    for section, counts in zip(sections, [(40, 64), (64, 10)], strict=True):
        section["objective"] = "bradley-terry"  # type: ignore[assignment]
        recipe = load_recipe(write_recipe(tmp_path, {"reward": section}))
        record = load_signal_data("reward", recipe, parse_signal("reward"), tiny_tokenizer).record
        assert (record["train"]["rows"], record["test"]["rows"]) == counts


def test_what_the_hub_lacks_is_told(hub: Path) -> None:
    with pytest.raises(OtterError, match="split tests: ") as caught:
        list(HubTable(str(hub), "tests").records())
    assert "check id, subset, split and revision" in caught.value.hint
    with pytest.raises(OtterError, match="'org/name' has no revision") as caught:
        list(HubTable("org/name", "train").records())
    assert "a commit or a tag" in caught.value.hint
    with pytest.raises(OtterError, match="dataset org/name, split train: "):
        list(HubTable("org/name", "train", "abc").records())


@pytest.mark.parametrize("train", [{}, {"path": "a.jsonl", "dataset": "b"}])
def test_a_source_is_one_place(tmp_path: Path, train: dict[str, Any]) -> None:
    with pytest.raises(OtterError, match="give path .* or dataset .*, one of them"):
        load_recipe(write_recipe(tmp_path, {"reward": {**REWARD, "train": train}}))


def test_bytes_in_a_parquet_file_that_are_no_text(tmp_path: Path) -> None:
    offsets = arrow.py_buffer(b"".join(i.to_bytes(4, "little") for i in (0, 4)))
    column = arrow.StringArray.from_buffers(1, offsets, arrow.py_buffer(b"caf\xe9"))
    parquet.write_table(arrow.table({"text": column}), tmp_path / "latin.parquet")
    with pytest.raises(OtterError, match=r"latin\.parquet: pyarrow cannot load the rows") as caught:
        list(read_records(tmp_path / "latin.parquet"))
    assert "utf-8" in caught.value.what
