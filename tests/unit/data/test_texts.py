import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from otter_cli.core.errors import OtterError
from otter_cli.data.splits import LimitedTable
from otter_cli.data.tables import paragraph_records
from otter_cli.data.texts import LabelledText, read_labelled, read_texts


def rows(path: Path, *values: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def test_numbers_and_texts_of_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,rude,threat\na,1,0.25\nb,0,1e-1\n")
    assert read_labelled(path, text="text", labels=["threat", "rude"]) == [
        LabelledText("a", (0.25, 1.0)),
        LabelledText("b", (0.1, 0.0)),
    ]


def test_one_column_of_classes_as_a_binary_label(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("class,tweet\n0,a\n1,b\n2,c\n")
    found = read_labelled(path, text="tweet", labels=["class"], mapping={"0": 1, "1": 1, "2": 0})
    assert [row.labels for row in found] == [(1.0,), (1.0,), (0.0,)]


def test_one_column_of_classes_as_several_labels(tmp_path: Path) -> None:
    path = rows(tmp_path / "a.jsonl", {"t": "a", "class": 0}, {"t": "b", "class": "rude"})
    mapping = {"0": [1, 0], "rude": [0, 1]}
    found = read_labelled(path, text="t", labels=["class"], mapping=mapping)
    assert [row.labels for row in found] == [(1.0, 0.0), (0.0, 1.0)]


def test_nested_columns(tmp_path: Path) -> None:
    path = rows(
        tmp_path / "a.jsonl", *[{"prompt": {"text": str(i), "toxicity": 0.5}} for i in (1, 2)]
    )
    found = read_labelled(path, text="prompt.text", labels=["prompt.toxicity"])
    assert found == [LabelledText("1", (0.5,)), LabelledText("2", (0.5,))]


@pytest.mark.parametrize(
    ("label", "what"),
    [
        (2, "line 2: 'y' is 2, outside 0 to 1"),
        (-0.1, "line 2: 'y' is -0.1, outside 0 to 1"),
        ("inf", "line 2: 'y' is inf, outside 0 to 1"),
        ("nan", "line 2: 'y' is 'nan', not a number"),
        ("rude", "line 2: 'y' is 'rude', not a number"),
        ("", "line 2: 'y' is '', not a number"),
        (None, "line 2: 'y' is None, not a number"),
    ],
)
def test_a_bad_number_is_refused_by_line(tmp_path: Path, label: object, what: str) -> None:
    path = rows(tmp_path / "a.jsonl", {"t": "a", "y": 0}, {"t": "b", "y": label})
    with pytest.raises(OtterError) as raised:
        read_labelled(path, text="t", labels=["y"])
    assert what in raised.value.what
    assert raised.value.hint


def test_another_range(tmp_path: Path) -> None:
    path = rows(tmp_path / "a.jsonl", {"t": "a", "y": -3}, {"t": "b", "y": 5})
    assert read_labelled(path, text="t", labels=["y"], low=-5, high=5)[0].labels == (-3.0,)


def test_a_class_the_mapping_lacks(tmp_path: Path) -> None:
    path = rows(tmp_path / "a.jsonl", {"t": "a", "y": "rude"}, {"t": "b", "y": "ruude"})
    with pytest.raises(
        OtterError, match="line 2: 'y' is 'ruude', which the mapping lacks"
    ) as raised:
        read_labelled(path, text="t", labels=["y"], mapping={"rude": 1, "kind": 0})
    assert raised.value.hint == "did you mean 'rude'? it has rude, kind"


@pytest.mark.parametrize(
    ("mapping", "what"),
    [({"a": 1, "b": [0, 1]}, "its values have 1 and 2 numbers"), ({"a": 3}, "'a' stands for 3")],
)
def test_a_bad_mapping_is_refused_before_the_file_is_read(mapping: dict, what: str) -> None:
    with pytest.raises(OtterError, match=what):
        read_labelled("missing.csv", text="t", labels=["y"], mapping=mapping)


def test_a_wrong_column_names_the_closest(tmp_path: Path) -> None:
    path = rows(tmp_path / "a.jsonl", *[{"tweet": "a", "class": 0}] * 2)
    with pytest.raises(OtterError, match="no column 'tweets'") as raised:
        read_labelled(path, text="tweets", labels=["class"])
    assert "did you mean 'tweet'?" in raised.value.hint


def test_the_real_tweets(shared: Path) -> None:
    found = read_labelled(
        shared / "data/toxicity/davidson.csv",
        text="tweet",
        labels=["class"],
        mapping={"0": 1, "1": 1, "2": 0},
    )
    assert len(found) == 24_783
    assert sum(row.labels[0] for row in found) == 1_430 + 19_190


def test_paragraphs_of_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\n\none\n  two\r\n \nthree\n\n\n\nfour")
    assert read_texts(path) == ["one\n  two", "three", "four"]
    assert [record.line for record in paragraph_records(path)] == [3, 6, 10]
    assert len(read_texts(LimitedTable(path, 2))) == 2
    assert len(read_texts(LimitedTable(path, 1), column="story")) == 1


def test_a_column_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"story": "a"}\n{"story": "b"}\n'))
    assert read_texts(path, column="story") == ["a", "b"]


@pytest.mark.parametrize(("content", "what"), [(b"", "0 bytes"), (b"\n \n", "no examples")])
def test_a_file_without_text_is_refused(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(OtterError, match=what) as raised:
        read_texts(path)
    assert raised.value.hint
