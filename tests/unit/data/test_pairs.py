import json
from pathlib import Path

import pytest

from otter_cli.core.errors import OtterError
from otter_cli.data.pairs import PreferencePair, read_pairs, shared_dialogue
from otter_cli.data.splits import LimitedTable


def write(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


GOOD = {"chosen": "kind", "rejected": "rude"}


def test_pairs_without_a_marked_prompt(tmp_path: Path) -> None:
    pairs = read_pairs(write(tmp_path / "a.jsonl", GOOD, GOOD))
    assert pairs == [PreferencePair("kind", "rude")] * 2
    assert pairs[0].identity == ("kind", "rude")


def test_the_prompt_of_a_dialogue_is_what_both_share(tmp_path: Path) -> None:
    start = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: how?\n\nAssistant:"
    row = {"chosen": start + " Like this.", "rejected": start + " Like that."}
    [pair, _] = read_pairs(write(tmp_path / "a.jsonl", row, row))
    assert pair.prompt == start
    assert pair.identity == (start,)


def test_dialogues_that_part_earlier_share_less() -> None:
    one = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d"
    other = "\n\nHuman: a\n\nAssistant: x\n\nHuman: c\n\nAssistant: d"
    assert shared_dialogue(one, other) == "\n\nHuman: a\n\nAssistant:"
    assert shared_dialogue(one, one[:-1]) == one[:-2]
    assert shared_dialogue("abc", "abd") == ""
    assert shared_dialogue("", "") == ""


def test_a_prompt_column_goes_before_both(tmp_path: Path) -> None:
    row = {"question": "Q: ", "good": "yes", "bad": "no"}
    path = write(tmp_path / "a.jsonl", row, row)
    [pair, _] = read_pairs(path, chosen="good", rejected="bad", prompt="question")
    assert pair == PreferencePair("Q: yes", "Q: no", "Q: ")


def test_equal_texts_are_kept_for_a_caller_that_counts_them(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", GOOD, {"chosen": "same", "rejected": "same"})
    assert read_pairs(path, keep_equal=True)[1] == PreferencePair("same", "same")


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"chosen": "same", "rejected": "same"}, "line 2: 'chosen' and 'rejected' are equal"),
        ({"chosen": "", "rejected": "x"}, "line 2: 'chosen' is empty"),
        ({"chosen": "x", "rejects": "y"}, "line 2: no column 'rejected'"),
        ({"chosen": [{"role": "user"}], "rejected": "y"}, "line 2: 'chosen' is a list, not text"),
    ],
)
def test_a_bad_pair_is_refused_by_line(tmp_path: Path, row: dict, what: str) -> None:
    with pytest.raises(OtterError, match=what) as raised:
        read_pairs(write(tmp_path / "a.jsonl", GOOD, row))
    assert raised.value.hint


def test_one_pair_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(OtterError, match="1 example, at least 2"):
        read_pairs(write(tmp_path / "a.jsonl", GOOD))


def test_the_real_pairs(shared: Path) -> None:
    detox = read_pairs(shared / "data/preference/paradetox.test.jsonl.gz")
    assert len(detox) == 1675
    assert not any(pair.prompt for pair in detox)
    harmless = read_pairs(LimitedTable(shared / "data/preference/hh-harmless.test.jsonl.gz", 100))
    assert len(harmless) == 100
    assert all(pair.prompt.endswith("\n\nAssistant:") for pair in harmless)
    assert all(pair.chosen.startswith(pair.prompt) for pair in harmless)
    assert all(pair.rejected.startswith(pair.prompt) for pair in harmless)
