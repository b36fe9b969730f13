"""The base writes, a scorer labels: rows that a recipe trains on."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from otter_cli.core.errors import OtterError
from otter_cli.data.chat_template import chat
from otter_cli.model import OtterForCausalLM
from otter_cli.model.pretrained import load_tokenizer
from otter_cli.teaching import Teaching, rows, teach
from otter_cli.teaching.writing import Drawing
from tests.support.grafts import random_graft
from tests.unit.api.test_api import TEMPLATE

DRAWING = Drawing(samples=3, tokens=6)
LETTERS = "python:tests.unit.teaching.test_teach:letters"
asked: list[str] = []


def letters(text: str) -> dict[str, float]:
    asked.append(text)
    return {"letters": float(sum(c.isalpha() for c in text)), "half": 0.5}


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    base = tmp_path / "base"
    shutil.copytree(tiny_llama, base)
    (base / "chat_template.jinja").write_text(TEMPLATE)
    return random_graft(base, tmp_path / "graft", hidden=8, heads=2, ffn=16)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("hello\ngood day\nwell\n")
    return path


def taught(folder: Path, prompts: Path, *labels: str, **options: Any) -> list[dict[str, Any]]:
    options = {"chat": False, "drawing": DRAWING, **options}
    asked.clear()
    result = teach(
        folder,
        OtterForCausalLM.from_pretrained(folder),
        load_tokenizer(folder),
        Teaching(LETTERS, prompts, **options),
        list(labels) or None,
    )
    return [json.loads(line) for line in result.path.read_text().splitlines()]


def test_each_row_is_a_prompt_with_the_bases_text_and_its_label(
    folder: Path, prompts: Path
) -> None:
    made = taught(folder, prompts, "letters", "half")
    assert 0 < len(made) <= 9
    numbers = [sum(c.isalpha() for c in row["text"].removeprefix(_start(row))) for row in made]
    low, high = min(numbers), max(numbers)
    expected = [(n - low) / (high - low) for n in numbers]
    assert [row["letters"] for row in made] == pytest.approx(expected)
    assert all(row["half"] == 0.5 for row in made)


def _start(row: dict[str, Any]) -> str:
    return next(p for p in ("hello", "good day", "well") if row["text"].startswith(p))


def test_a_second_run_asks_nobody_and_writes_the_same(folder: Path, prompts: Path) -> None:
    first = taught(folder, prompts)
    assert asked
    assert taught(folder, prompts) == first
    # Loading a function asks it once which names it gives.
    assert asked == ["a text"]


def test_more_prompts_keep_the_texts_of_the_others(folder: Path, prompts: Path) -> None:
    first = {row["text"] for row in taught(folder, prompts)}
    prompts.write_text(prompts.read_text() + "another one\n")
    second = {row["text"] for row in taught(folder, prompts)}
    assert first < second


def test_a_stopped_run_goes_on(
    folder: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = taught(folder, prompts)
    store = folder / rows.STORE
    texts = next(store.glob("texts-*.jsonl"))
    texts.write_text(texts.read_text().splitlines(keepends=True)[0])
    for path in store.glob("labels-*.jsonl"):
        path.unlink()
    assert taught(folder, prompts) == whole


def test_with_a_chat_template_rows_are_dialogues(folder: Path, prompts: Path) -> None:
    made = taught(folder, prompts, chat=True)
    user, assistant = made[0]["messages"]
    assert user["role"] == "user" and assistant["role"] == "assistant"
    tokenizer = load_tokenizer(folder)
    ids = list(chat(tokenizer, [user], generate=True).ids)
    stored = [
        json.loads(line)
        for line in next((folder / rows.STORE).glob("texts-*")).read_text().splitlines()
    ]
    assert len(stored) == 3 and ids
    assert made != taught(folder, prompts, chat=False)


def test_the_prompt_is_read_too_where_that_is_wanted(folder: Path, prompts: Path) -> None:
    taught(folder, prompts, reads="text")
    assert all(text.startswith(("hello", "good day", "well")) for text in asked if text != "a text")


@pytest.mark.parametrize("options", [{"samples": 0}, {"tokens": 0}, {"temperature": 0.0}])
def test_drawings_without_meaning(options: dict[str, Any]) -> None:
    with pytest.raises(OtterError):
        Drawing(**options)
