"""Parquet files, datasets in the hub's layout and chat messages come out as other rows do."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pytest
from pyarrow import parquet

from otter_cli.core.errors import OtterError
from otter_cli.data.chat import Chat
from otter_cli.data.encoding import Encoder
from otter_cli.data.hub import HubTable
from otter_cli.data.plain import read_texts
from otter_cli.data.preference import read_pairs
from otter_cli.data.records import Record, read_records
from otter_cli.signals import parse_signal
from otter_cli.training import load_recipe
from otter_cli.training.material import load_material
from tests.support.training import REWARD, write_data, write_recipe

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
    [(b"", "the file is empty (0 bytes)"), (b"PAR1 and no more", "not a whole parquet file")],
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
    found = load_material("reward", recipe, parse_signal("reward"), tiny_tokenizer)
    assert found.record["train"]["rows"] == 40 and found.record["test"]["rows"] == 10
    assert found.record["train"]["split"] == "train" and found.record["shared"] == 10
    again = load_material("reward", recipe, parse_signal("reward"), tiny_tokenizer)
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
        record = load_material("reward", recipe, parse_signal("reward"), tiny_tokenizer).record
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


class Templated:
    """A tokenizer with a template of its own, that writes BOS itself as many do."""

    bos_token = "<s>"
    chat_template = "yes"

    def apply_chat_template(
        self, messages: Any, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        said = "".join(f"[{m['role']}]{m['content']}\n" for m in messages)
        return "<s>" + said + ("[assistant]" if add_generation_prompt else "")


class Listed:
    """A table of given rows."""

    def __init__(self, *rows: dict[str, Any]) -> None:
        self.rows = rows

    def __str__(self) -> str:
        return "table"

    def records(self) -> Iterator[Record]:
        for number, row in enumerate(self.rows, 1):
            yield Record(self, number, row, "row")


def _said(*turns: str) -> list[dict[str, str]]:
    roles = ["user", "assistant"] * len(turns)
    return [{"role": r, "content": turn} for r, turn in zip(roles, turns, strict=False)]


def test_whole_dialogues_become_templated_texts() -> None:
    row = {"chosen": _said("hi", "hello"), "rejected": _said("hi", "go")}
    table = Chat(Listed(row, row), Templated(), ("chosen", "rejected"))
    pair = read_pairs(table)[0]
    assert pair.chosen == "[user]hi\n[assistant]hello\n"
    assert pair.rejected == "[user]hi\n[assistant]go\n"


@pytest.mark.parametrize("prompt", ["hi", _said("hi")], ids=["text", "messages"])
def test_answers_follow_their_prompt(prompt: Any) -> None:
    row = {"prompt": prompt, "chosen": "hello", "rejected": "go"}
    table = Chat(Listed(row, row), Templated(), ("chosen", "rejected"), "prompt")
    pair = read_pairs(table, prompt="prompt")[0]
    assert (pair.prompt, pair.chosen) == ("[user]hi\n[assistant]", "[user]hi\n[assistant]hello\n")


def test_a_real_template_and_its_bos_once(tiny_tokenizer: Any, monkeypatch: Any) -> None:
    template = "{{ bos_token }}{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}"
    monkeypatch.setattr(tiny_tokenizer, "chat_template", template)
    texts = read_texts(Chat(Listed(*[{"text": _said("hi", "yo")}] * 2), tiny_tokenizer, ("text",)))
    assert texts == ["u:hi;a:yo;"] * 2
    ids = Encoder(tiny_tokenizer, 32)(texts).ids[0]
    assert ids.count(tiny_tokenizer.bos_token_id) == 1


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"text": "plain"}, "table, row 1: 'text' holds no messages"),
        ({"text": []}, "'text' holds no messages"),
        ({"text": [{"role": "user"}]}, "'text' holds no messages"),
        ({"texts": _said("hi")}, "no column 'text'"),
    ],
)
def test_what_is_no_dialogue_is_refused(row: dict[str, Any], what: str) -> None:
    with pytest.raises(OtterError) as caught:
        read_texts(Chat(Listed(row), Templated(), ("text",)))
    assert what in caught.value.what


def test_without_a_template_it_is_told(tiny_tokenizer: Any) -> None:
    with pytest.raises(OtterError, match="the tokenizer has no chat template") as caught:
        read_texts(Chat(Listed({"text": _said("hi")}), tiny_tokenizer, ("text",)))
    assert "leave chat out" in caught.value.hint


def test_a_template_that_writes_the_prompt_otherwise_is_refused() -> None:
    tokenizer = Templated()
    tokenizer.apply_chat_template = lambda messages, **how: f"{len(messages)}"  # type: ignore[method-assign]
    row = {"prompt": "hi", "chosen": "a", "rejected": "b"}
    with pytest.raises(OtterError, match="writes 'prompt' otherwise before 'chosen'"):
        read_pairs(Chat(Listed(row), tokenizer, ("chosen", "rejected"), "prompt"), prompt="prompt")
