"""What `otter data check` counts, against what training reads."""

import json
from pathlib import Path
from typing import Any

import pytest

from otter_cli.core.errors import OtterError
from otter_cli.data.encoding import Encoder
from otter_cli.data.summary import summarise
from tests.support.chat_tokenizers import TEMPLATES, chat_tokenizer

USER = [{"role": "user", "content": "q"}]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@pytest.fixture
def summary(tmp_path: Path) -> Any:
    def of(*rows: dict[str, Any], **options: Any) -> Any:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return summarise(path, **options)

    return of


@pytest.mark.parametrize("length", [4, 5, 6, 7])
def test_cuts_are_those_of_training(summary: Any, tiny_tokenizer: Any, length: int) -> None:
    """With the end token, which training writes after a text."""
    texts = ["abc", "abcd", "abcde"]
    rows = ({"text": text, "label": 1} for text in texts)
    counted = summary(*rows, tokenizer=tiny_tokenizer, max_length=length)
    encoded = Encoder(tiny_tokenizer, length)(texts)
    assert counted.cut == encoded.truncation.cut
    assert counted.lengths["longest"] == max(map(len, Encoder(tiny_tokenizer, 99)(texts).ids))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": USER, "chosen": "a", "rejected": "b"},
        {"prompt": USER, "chosen": said("a"), "rejected": said("b")},
        {"prompt": "q", "chosen": said("a"), "rejected": said("b")},
        {"prompt": "q", "chosen": USER + said("a"), "rejected": USER + said("b")},
    ],
)
def test_pairs_of_messages_are_counted_as_the_same_dialogues(
    summary: Any, tiny_tokenizer: Any, row: dict[str, Any]
) -> None:
    tokenizer = chat_tokenizer(tiny_tokenizer, TEMPLATES[next(iter(TEMPLATES))])
    whole = tokenizer.apply_chat_template(USER + said("a"), tokenize=True, return_dict=False)
    counted = summary(row, tokenizer=tokenizer)
    assert counted.kind == "pairs" and counted.chat
    assert counted.lengths["longest"] == len(whole)
    # Without a tokenizer characters are counted.
    assert summary(row).lengths["longest"] == 2


def test_a_prompt_with_an_answer_is_a_dialogue_where_there_is_a_template(
    summary: Any, tiny_tokenizer: Any
) -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    tokenizer = chat_tokenizer(tiny_tokenizer, TEMPLATES[next(iter(TEMPLATES))])
    assert summary(row, tokenizer=tokenizer).chat
    assert not summary(row, tokenizer=tiny_tokenizer).chat


@pytest.mark.parametrize("named", [{"chosen": "better"}, {"rejected": "worse"}])
def test_one_text_of_a_pair_is_not_enough(summary: Any, named: dict[str, str]) -> None:
    with pytest.raises(OtterError, match="a pair has two texts"):
        summary({"better": "a", "worse": "b", "text": "c"}, named=named)


def test_a_named_text_wins_over_columns_that_look_like_a_pair(summary: Any) -> None:
    row = {"chosen": "a", "rejected": "b", "note": "abc"}
    counted = summary(row, named={"text": "note"})
    assert counted.kind == "texts" and counted.lengths["longest"] == 3
