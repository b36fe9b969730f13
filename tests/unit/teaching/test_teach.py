"""The base writes, a scorer labels: rows that a recipe trains on."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from otter_cli.core.errors import OtterError
from otter_cli.data.chat_template import render_chat
from otter_cli.model.load import load_tokenizer
from otter_cli.model.otter import OtterForCausalLM
from otter_cli.scorers.text_scorer import TextScorer
from otter_cli.teaching import continuations, rows
from otter_cli.teaching.continuations import ContinuationSettings
from otter_cli.teaching.rows import TeachingSettings, teach
from tests.support.grafts import chat_base, random_graft

DRAWING = ContinuationSettings(samples=3, tokens=6)
LETTERS = "python:tests.unit.teaching.test_teach:letters"
asked: list[str] = []
# At which call a user presses Ctrl-C; 0: never.
stop_at = 0


def letters(text: str) -> dict[str, float]:
    asked.append(text)
    if len(asked) == stop_at:
        raise KeyboardInterrupt
    return {"letters": float(sum(c.isalpha() for c in text)), "half": 0.5}


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    base = chat_base(tiny_llama, tmp_path / "base")
    return random_graft(base, tmp_path / "graft", hidden=8, heads=2, ffn=16)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("hello\ngood day\nwell\n")
    return path


def taught(folder: Path, prompts: Path, *labels: str, **options: Any) -> list[dict[str, Any]]:
    options = {"chat": False, "continuations": DRAWING, **options}
    asked.clear()
    result = teach(
        folder,
        OtterForCausalLM.from_pretrained(folder),
        load_tokenizer(folder),
        TeachingSettings(LETTERS, prompts, **options),
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
    ids = list(render_chat(tokenizer, [user], generate=True).ids)
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
        ContinuationSettings(**options)


def test_ctrl_c_while_the_base_writes_keeps_its_texts(
    folder: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And while the teacher labels."""
    whole = taught(folder, prompts)
    shutil.rmtree(folder / rows.STORE)
    monkeypatch.setattr(continuations, "_ROWS_AT_ONCE", 3)
    monkeypatch.setattr(rows, "_TEXTS_AT_ONCE", 2)
    write, states = continuations._generate, []

    def stopped_at_second(model: Any, keys: Any, *more: Any) -> Any:
        states.extend(keys)
        if len(states) == 2:
            raise KeyboardInterrupt
        return write(model, keys, *more)

    monkeypatch.setattr(continuations, "_generate", stopped_at_second)
    with pytest.raises(KeyboardInterrupt):
        taught(folder, prompts)
    monkeypatch.setattr("tests.unit.teaching.test_teach.stop_at", 4)
    with pytest.raises(KeyboardInterrupt):
        taught(folder, prompts)
    # The first text was stored: the second and the third are left.
    assert len(states) == 4
    labelled = set(asked[1:3])
    monkeypatch.setattr("tests.unit.teaching.test_teach.stop_at", 0)
    assert taught(folder, prompts) == whole
    assert len(states) == 4 and labelled and not labelled & set(asked)


def test_the_range_of_the_labels_is_said(
    folder: Path, prompts: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    taught(folder, prompts, "letters", "half")
    said = capfd.readouterr().err
    numbers = [sum(c.isalpha() for c in text) for text in asked if text != "a text"]
    assert f"letters from {min(numbers)} to {max(numbers)} is mapped" in said
    assert "half" in said and "half from" not in said


def test_equal_scores_are_warned_about(
    folder: Path,
    prompts: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    scorer = TextScorer(("a",), lambda texts: [[7.0] for _ in texts], "0" * 64)
    monkeypatch.setattr(rows, "load_text_scorer", lambda *_, **__: scorer)
    assert {row["a"] for row in taught(folder, prompts)} == {0.5}
    assert "every text 7 as a" in capfd.readouterr().err


def test_equal_prompts_count_once(folder: Path, prompts: Path) -> None:
    once = taught(folder, prompts)
    prompts.write_text(prompts.read_text() * 2)
    assert taught(folder, prompts) == once


def test_a_prompt_beyond_the_window_is_refused_before_anything_is_written(
    folder: Path, prompts: Path
) -> None:
    prompts.write_text("hello\n" + "a" * 200 + "\n")
    with pytest.raises(OtterError, match=r"prompts\.txt, line 2.*window"):
        taught(folder, prompts)
    assert not list((folder / rows.STORE).glob("texts-*"))


def test_messages_without_a_chat_template_are_refused_with_file_and_line(
    folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "hi"}]}) + "\n")
    with pytest.raises(OtterError, match=r"m\.jsonl, line 1") as error:
        taught(folder, path, chat=False)
    assert "--raw" in str(error.value.hint)
    assert all(row["messages"][0]["content"] == "hi" for row in taught(folder, path, chat=True))


def test_a_base_that_writes_nothing_is_said(
    folder: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        continuations,
        "_generate",
        lambda _, starts, settings: [[[2]] * settings.samples for _ in starts],
    )
    with pytest.raises(OtterError, match="wrote nothing"):
        taught(folder, prompts)


def test_a_score_called_as_the_texts_are_does_not_replace_them(
    folder: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = TextScorer(("text",), lambda texts: [[0.5] for _ in texts], "0" * 64)
    monkeypatch.setattr(rows, "load_text_scorer", lambda *_, **__: scorer)
    with pytest.raises(OtterError, match="calls a score 'text'"):
        taught(folder, prompts)


def test_a_score_that_is_not_finite_is_never_stored(tmp_path: Path) -> None:
    scorer = TextScorer(("a",), lambda texts: [[float(t)] for t in texts], "0" * 64)
    with pytest.raises(OtterError, match="not finite"):
        rows.label_texts(scorer, ["1", "nan", "2"], tmp_path)
    (path,) = tmp_path.glob("labels-*.jsonl")
    assert [json.loads(line)["text"] for line in path.read_text().splitlines()] == ["1"]
