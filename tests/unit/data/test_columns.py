"""Usual names of columns: used by themselves, an error where two could be meant, others told."""

from typing import Any

import pytest

from otter_cli.core.errors import OtterError
from otter_cli.data.columns import (
    ANSWER_COLUMNS,
    PROMPT_COLUMNS,
    ignored_columns,
    pair_prompt,
    usual_text,
)

SAID = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
PAIR = {"chosen": " yes", "rejected": " no"}


def _prompt(*rows: dict[str, Any]) -> str | None:
    return pair_prompt("chosen", "rejected", rows)


@pytest.mark.parametrize("name", PROMPT_COLUMNS)
def test_each_usual_name_of_a_prompt_is_used(name: str) -> None:
    assert _prompt({name: "Is it?", **PAIR}) == name


def test_two_prompts_are_an_error_that_names_both() -> None:
    with pytest.raises(OtterError, match="'instruction' and 'input' could both be the prompt") as e:
        _prompt({"instruction": "a", "input": "b", **PAIR})
    assert "prompt: instruction" in e.value.hint


def test_a_prompt_that_the_texts_hold_is_not_put_before_them_twice() -> None:
    whole = {"prompt": "Is it?", "chosen": "Is it? yes", "rejected": "Is it? no"}
    assert _prompt(whole) is None
    # By coincidence in one row of two: it is a column of its own.
    assert _prompt(whole, {"prompt": "Who?", **PAIR}) == "prompt"
    dialogue = {"prompt": "hi", "chosen": SAID, "rejected": SAID}
    assert _prompt(dialogue) is None
    answers = {"prompt": SAID[:1], "chosen": SAID[1:], "rejected": SAID[1:]}
    assert _prompt(answers) == "prompt"


def test_a_number_or_an_object_is_no_prompt() -> None:
    assert _prompt({"input": 3, "prompt": {"text": "x"}, **PAIR}) is None


@pytest.mark.parametrize("name", ANSWER_COLUMNS)
def test_an_answer_is_the_text_and_its_prompt_goes_before_it(name: str) -> None:
    rows = [{"prompt": "Is it?", name: "yes", "label": 1}]
    assert usual_text("text", set(), rows) == {"text": name, "prompt": "prompt"}
    assert usual_text("text", {"prompt"}, rows) == {"text": name}
    assert usual_text("text", {"text"}, rows) == {}


def test_a_column_called_text_is_whole() -> None:
    assert usual_text("column", set(), [{"prompt": "a", "text": "b"}]) == {"column": "text"}
    assert usual_text("column", set(), [{"messages": SAID}]) == {"column": "messages"}
    assert usual_text("column", set(), [{"tweet": "x"}]) == {}
    with pytest.raises(OtterError, match="'text' and 'messages' could both be the column"):
        usual_text("column", set(), [{"messages": SAID, "text": "b"}])


def test_columns_that_nothing_reads() -> None:
    rows = [{"a": 1, "prompt": {"text": "x"}}, {"b": 2, "c": 3}]
    assert ignored_columns(rows, ["prompt.text", "c"]) == ["a", "b"]
