"""Columns and label values of files as people have them, guessed or refused with what to type."""

import csv
from pathlib import Path
from typing import Any

import pytest

from otter_cli.core.errors import OtterError
from otter_cli.data.columns import sample_rows
from otter_cli.data.guess import (
    guess_label,
    guess_mapping,
    guess_pair,
    guess_text,
    label_counts,
    map_options,
    unclear_labels,
)
from otter_cli.data.summary import summarise

TEXTS = [f"this is sentence number {i} of the file" for i in range(12)]


def write(path: Path, header: list[str], *columns: list[Any], delimiter: str = ",") -> Path:
    with path.open("w", newline="") as file:
        rows = csv.writer(file, delimiter=delimiter)
        rows.writerow(header)
        rows.writerows(zip(*columns, strict=True))
    return path


NUMBERS = list(range(12))
BITS = [i % 2 for i in NUMBERS]


def words(zero: str, one: str) -> list[str]:
    return [one if bit else zero for bit in BITS]


FILES = {
    "a usual name in another case": (["Text", "Label"], [TEXTS, BITS], "Text", "Label", {}),
    "Jigsaw": (
        ["id", "comment_text", "toxic"], [NUMBERS, TEXTS, BITS], "comment_text", "toxic", {},
    ),
    "SMS spam, by what the columns hold": (
        ["v1", "v2"], [words("ham", "spam"), TEXTS], "v2", "v1", {"ham": 0.0, "spam": 1.0},
    ),
    "IMDB": (
        ["review", "sentiment"], [TEXTS, words("negative", "positive")], "review", "sentiment",
        {"negative": 0.0, "positive": 1.0},
    ),
    "stars": (
        ["id", "review_body", "star_rating"], [NUMBERS, TEXTS, [1 + i % 5 for i in NUMBERS]],
        "review_body", "star_rating", {"1": 0.0, "2": 0.25, "3": 0.5, "4": 0.75, "5": 1.0},
    ),
    "truth values": (
        ["Sentence", "is_spam"], [TEXTS, [bool(bit) for bit in BITS]], "Sentence", "is_spam",
        {"False": 0.0, "True": 1.0},
    ),
    "Davidson, whose classes only the user can map": (
        ["", "count", "class", "tweet"], [NUMBERS, [3] * 12, [i % 3 for i in NUMBERS], TEXTS],
        "tweet", "class", None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_a_file_is_understood(tmp_path: Path, name: str, delimiter: str) -> None:
    header, columns, text, label, mapping = FILES[name]
    path = write(tmp_path / "data.csv", header, *columns, delimiter=delimiter)
    summary = summarise(path)
    assert (summary.kind, summary.columns) == ("labels", {"text": text, "label": label})
    assert summary.mapping == mapping and summary.rows == 12


def test_two_columns_that_could_be_meant_are_not_guessed() -> None:
    rows = [{"first": t, "second": t[::-1], "a": str(i % 2), "b": str(i % 3)}
            for i, t in enumerate(TEXTS)]  # fmt: skip
    assert guess_text(rows) is None and guess_label(rows, "first") is None


def test_a_signal_s_name_decides_between_labels() -> None:
    rows = [{"text": t, "toxic": "0", "severe_toxic": "1", "rating": "1"} for t in TEXTS]
    guess = guess_label(rows, "text", ["toxicity"])
    assert guess is not None and guess.column == "toxic"
    assert guess_label(rows, "text") is None


def test_pairs_have_usual_names_too() -> None:
    assert guess_pair([{"Chosen": "a", "Rejected": "b"}]) == ("Chosen", "Rejected")
    assert guess_pair([{"better": "a", "worse": "b", "x": "c"}]) == ("better", "worse")
    assert guess_pair([{"response_a": "a", "response_b": "b"}]) is None


@pytest.mark.parametrize(
    ("values", "column", "good", "mapping"),
    [
        (["0", "0.5", "1"], "x", False, {}),
        (["negative", "positive"], "x", False, None),
        (["negative", "positive"], "x", True, {"negative": 0.0, "positive": 1.0}),
        (["1", "2"], "class", True, None),
        (["1", "2"], "stars", False, None),
        (["red", "green"], "x", True, None),
        (["red", "green", "blue"], "x", True, None),
        (["Yes", "NO"], "x", False, {"NO": 0.0, "Yes": 1.0}),
    ],
)
def test_values_stand_for_numbers_only_where_that_is_sure(
    values: list[str], column: str, good: bool, mapping: dict[str, float] | None
) -> None:
    assert guess_mapping(values, column, good_is_high=good) == mapping


def test_a_value_with_the_signal_s_name_is_1() -> None:
    mapping = guess_mapping(["rude", "kind"], "x", good_is_high=False, signals=["rude"])
    assert mapping == {"rude": 1.0, "kind": 0.0}


def test_what_is_not_clear_is_refused_with_the_columns_and_the_options(tmp_path: Path) -> None:
    path = write(tmp_path / "two.csv", ["first", "second"], TEXTS, [t[::-1] for t in TEXTS])
    with pytest.raises(OtterError, match="its columns are 'first', such as 'this is") as caught:
        summarise(path)
    assert "--text COLUMN --label COLUMN" in caught.value.hint
    path = write(tmp_path / "headless.csv", [TEXTS[0], "1"], TEXTS[1:], BITS[1:])
    with pytest.raises(OtterError) as caught:
        summarise(path)
    assert "the first line looks like data" in caught.value.hint


def test_labels_that_only_the_user_can_map_bring_their_counts_and_the_options() -> None:
    counts = label_counts(["2", "0", "2", "10 %"])
    assert list(counts) == ["0", "2", "10 %"]
    error = unclear_labels(Path("d.csv"), "class", counts, "toxicity")
    assert "'0' (1 rows), '2' (2 rows)" in error.what
    assert error.hint.endswith("--map 0=NUMBER --map 2=NUMBER --map '10 %=NUMBER'")
    assert map_options({"ham": 0.0, "10 %": 0.5}) == "--map ham=0 --map '10 %=0.5'"
    many = unclear_labels(Path("d.csv"), "x", {str(i): 1 for i in range(30)}, "reward")
    assert "30 different values" in many.what


def test_sampled_rows_of_a_semicolon_file_are_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", ["a;b"], ["x, y", "z"])
    assert sample_rows(path) == [{"a;b": "x, y"}, {"a;b": "z"}]
