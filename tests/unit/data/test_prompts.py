import json
from pathlib import Path

import pytest

from otter_cli.core.errors import OtterError
from otter_cli.data.prompts import Prompt, draw_prompts, read_prompts


def rows(path: Path, *values: dict) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


DIALOGUE = "\n\nHuman: hi\n\nAssistant:"


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": {"text": "So I", "toxicity": 0.1}}, Prompt("So I", 1, "non-toxic")),
        ({"category": "math", "turns": ["2 + 2?", "sure?"]}, Prompt("2 + 2?", 1, "math")),
        ({"prompt": "Once"}, Prompt("Once", 1)),
        ({"text": "Once"}, Prompt("Once", 1)),
        ({"chosen": DIALOGUE + " a", "rejected": DIALOGUE + " b"}, Prompt(DIALOGUE, 1)),
    ],
)
def test_each_published_form_is_recognised(tmp_path: Path, row: dict, prompt: Prompt) -> None:
    assert read_prompts(rows(tmp_path / "a.jsonl", row)) == [prompt]


@pytest.mark.parametrize("name", ["question", "instruction", "query", "input"])
def test_other_usual_names_of_a_prompt(tmp_path: Path, name: str) -> None:
    assert read_prompts(rows(tmp_path / "a.jsonl", {name: "Once"})) == [Prompt("Once", 1)]
    pair = {name: "Once", "chosen": "yes", "rejected": "no"}
    assert read_prompts(rows(tmp_path / "b.jsonl", pair)) == [Prompt("Once", 1)]


def test_pairs_with_a_prompt_column_give_that_prompt(tmp_path: Path) -> None:
    row = {"prompt": "Once", "chosen": "yes", "rejected": "no"}
    assert read_prompts(rows(tmp_path / "a.jsonl", row)) == [Prompt("Once", 1)]


def test_two_columns_that_could_be_the_prompt_are_refused(tmp_path: Path) -> None:
    path = rows(tmp_path / "a.jsonl", {"instruction": "Add", "input": "1 2"})
    with pytest.raises(OtterError, match="line 1: columns 'instruction' and 'input'") as caught:
        read_prompts(path)
    assert "--column instruction" in caught.value.hint


def test_lines_of_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\n\n two \n")
    assert read_prompts(path) == [Prompt("one", 1), Prompt(" two ", 3)]
    drawn = draw_prompts(path, limit=1)
    assert drawn.rows[0] in read_prompts(path) and len(drawn.rows) == 1
    assert drawn.drawn is not None and drawn.drawn.lines == (drawn.rows[0].line,)


def test_a_template_wraps_bare_prompts_only(tmp_path: Path) -> None:
    template = "\n\nHuman: {text}\n\nAssistant:"
    [prompt] = read_prompts(rows(tmp_path / "a.jsonl", {"text": "{hi}"}), template=template)
    assert prompt.text == "\n\nHuman: {hi}\n\nAssistant:"
    pair = {"chosen": DIALOGUE + " a", "rejected": DIALOGUE + " b"}
    [prompt] = read_prompts(rows(tmp_path / "b.jsonl", pair), template=template)
    assert prompt.text == DIALOGUE
    with pytest.raises(OtterError, match="has no {text}"):
        read_prompts(tmp_path / "a.jsonl", template="Human:")


def test_a_named_column_goes_before_the_forms(tmp_path: Path) -> None:
    path = rows(tmp_path / "a.jsonl", {"prompt": "no", "turns": ["no", "yes"]})
    assert read_prompts(path, column="turns.1")[0].text == "yes"


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"messages": []}, "line 1: 'messages' is an empty list"),
        ({"riddle": "x"}, "line 1: no prompt in columns 'riddle'"),
        ({"turns": []}, "line 1: no column '0'"),
        ({"turns": "x"}, "line 1: no column 'turns.0'"),
        ({"prompt": {"txt": "x"}}, "line 1: no column 'text'"),
        ({"prompt": {"text": ""}}, "line 1: 'prompt.text' is empty"),
        ({"prompt": 3}, "line 1: 'prompt' is a number"),
        ({"chosen": "a", "rejected": "b"}, "line 1: 'chosen' and 'rejected' share no dialogue"),
    ],
)
def test_a_row_without_a_prompt_is_refused(tmp_path: Path, row: dict, what: str) -> None:
    with pytest.raises(OtterError) as raised:
        read_prompts(rows(tmp_path / "a.jsonl", row))
    assert what in raised.value.what
    assert raised.value.hint


@pytest.mark.parametrize(
    ("file", "count"),
    [
        ("prompts/rtp-toxic.test.jsonl", 598),
        ("prompts/spec-bench.jsonl", 480),
        ("preference/hh-harmless.test.jsonl.gz", 500),
    ],
)
def test_the_real_prompts(shared: Path, file: str, count: int) -> None:
    prompts = read_prompts(shared / "data" / file)
    assert len(prompts) == count
    assert len({prompt.line for prompt in prompts}) == count
    if "spec" in file:
        assert len({prompt.category for prompt in prompts}) == 13
