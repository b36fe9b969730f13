from pathlib import Path

from otter_cli.data.labelled import LabelledText
from otter_cli.data.overlap import find_overlap
from otter_cli.data.preference import Pair, read_pairs


def test_case_and_white_space_make_no_difference() -> None:
    train = [LabelledText("Hello  world", (1.0,)), LabelledText("b", (0.0,))]
    test = [LabelledText("x", (0.0,)), LabelledText("hello\nWORLD ", (0.0,))]
    overlap = find_overlap(train, test)
    assert (overlap.shared, overlap.test, overlap.rows, overlap.share) == (1, 2, (1,), 0.5)


def test_dialogues_are_compared_by_their_prompts_and_pairs_by_both_texts() -> None:
    train = [Pair("p a", "p b", "p"), Pair("one", "two")]
    assert find_overlap(train, [Pair("p c", "p d", "p")]).shared == 1
    assert find_overlap(train, [Pair("p a", "p b", "q")]).shared == 0
    assert find_overlap(train, [Pair("three", "one")]).shared == 1


def test_nothing_overlaps_with_nothing() -> None:
    assert find_overlap([], []).share == 0.0


def test_the_first_ten_rows_are_named() -> None:
    rows = [LabelledText("same", (0.0,))] * 12
    overlap = find_overlap(rows, rows)
    assert overlap.shared == 12
    assert overlap.rows == tuple(range(10))


def test_the_real_split_of_dialogues_is_clean(shared: Path) -> None:
    folder = shared / "data/preference"
    train = read_pairs(folder / "hh-harmless.train.jsonl.gz")
    assert find_overlap(train, read_pairs(folder / "hh-harmless.test.jsonl.gz")).shared == 0
    assert find_overlap(train, train[:3]).shared == 3
