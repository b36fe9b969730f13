from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otter_cli.core.errors import OtterError
from otter_cli.core.process import derive_seed
from otter_cli.data.pairs import PreferencePair, read_pairs
from otter_cli.data.splits import Split, find_overlap, normal_text, split_rows
from otter_cli.data.texts import LabelledText


def test_case_and_white_space_make_no_difference() -> None:
    train = [LabelledText("Hello  world", (1.0,)), LabelledText("b", (0.0,))]
    test = [LabelledText("x", (0.0,)), LabelledText("hello\nWORLD ", (0.0,))]
    overlap = find_overlap(train, test)
    assert (overlap.shared, overlap.test, overlap.rows, overlap.share) == (1, 2, (1,), 0.5)


def test_dialogues_are_compared_by_their_prompts_and_pairs_by_both_texts() -> None:
    train = [PreferencePair("p a", "p b", "p"), PreferencePair("one", "two")]
    assert find_overlap(train, [PreferencePair("p c", "p d", "p")]).shared == 1
    assert find_overlap(train, [PreferencePair("p a", "p b", "q")]).shared == 0
    assert find_overlap(train, [PreferencePair("three", "one")]).shared == 1


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


WHERE = "pairs.jsonl"
FEW = st.sampled_from(["a", "b", "A ", "c", "d", "e", "f", "g", "h", "i"])


def _split(rows: Sequence[Any], share: float) -> Split | None:
    try:
        return split_rows(rows, share, "held out", WHERE)
    except OtterError:
        return None


@given(
    rows=st.lists(
        st.builds(PreferencePair, FEW, FEW, st.sampled_from(["", "p", "P", "q"])), min_size=2
    ),
    share=st.floats(0.05, 0.9),
)
def test_no_text_is_on_both_sides_and_no_row_is_lost(
    rows: list[PreferencePair], share: float
) -> None:
    split = _split(rows, share)
    if split is None:
        return
    assert find_overlap(split.training, split.held_out).shared == 0
    assert sorted(map(repr, [*split.training, *split.held_out])) == sorted(map(repr, rows))
    again = _split(rows, share)
    assert again is not None and again.held_out == split.held_out
    assert split.record(share)["rows"] == len(split.held_out)


@given(
    texts=st.sets(st.text(min_size=1).map(normal_text), min_size=4, max_size=90),
    share=st.floats(0.1, 0.9),
    order=st.randoms(use_true_random=False),
)
def test_rows_without_a_shared_text_come_as_near_as_a_tenth(
    texts: set[str], share: float, order: Any
) -> None:
    rows = sorted(texts)
    split = _split(rows, share)
    target = share * len(rows)
    if split is None:
        assert round(target) == 0
        return
    nearest = min(max(round(target), 1), len(rows) - 1)
    assert abs(len(split.held_out) - target) <= max(0.1 * target, abs(nearest - target)) + 1e-9
    order.shuffle(rows)
    shuffled = _split(rows, share)
    assert shuffled is not None and set(shuffled.held_out) == set(split.held_out)


def test_thirty_pairs_give_the_share_that_was_asked_for() -> None:
    """They gave 15, or 9, by the digests alone."""
    for seed in range(20):
        rows = [PreferencePair(f"good {seed} {i}", f"bad {seed} {i}") for i in range(30)]
        split = split_rows(rows, 0.2, "held out", WHERE)
        assert len(split.held_out) == 6
        assert split.description(0.2, "held out") == (
            "held out: 6 of 30 rows (20.0 %, 20.0 % asked for), chosen by their texts"
        )


def test_rows_of_one_prompt_stay_together_and_it_is_said() -> None:
    rows = [PreferencePair(f"good {i}", f"bad {i}", f"prompt {i % 2}") for i in range(30)]
    split = split_rows(rows, 0.2, "held out", WHERE)
    assert len(split.held_out) == 15 and split.groups == 2
    told = split.description(0.2, "held out")
    assert "1 of 2 such groups, the largest of 15 rows" in told and "50.0 %, 20.0 %" in told
    with pytest.raises(
        OtterError, match="in 1 groups that share texts leaves 30 to train on and 0"
    ):
        split_rows(
            [PreferencePair(f"g{i}", f"b{i}", "p") for i in range(30)], 0.2, "held out", WHERE
        )


def test_groups_of_unlike_size_come_near_the_share() -> None:
    rows = [PreferencePair(f"g{i}", f"b{i}", f"p{i // 7}") for i in range(70)]
    for share in (0.1, 0.2, 0.4):
        assert len(split_rows(rows, share, "held out", WHERE).held_out) == 70 * share


def test_large_files_are_split_by_the_digest_of_each_text_as_before(shared: Path) -> None:
    """A graft that was trained by an earlier version left the same rows aside."""
    rows = [LabelledText(f"text {i}", (0.0,)) for i in range(5_000)]
    split = split_rows(rows, 0.1, "held out", WHERE)
    assert split.by_bound
    expected = [r for r in rows if derive_seed("held out", r.text) % 10_000 < 1_000]
    assert split.held_out == expected
