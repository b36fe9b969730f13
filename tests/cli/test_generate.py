"""`otter generate` as a user types it."""

import json
from pathlib import Path

import pytest

from tests.conftest import Otter
from tests.support.grafts import random_graft


@pytest.fixture(scope="module")
def folder(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("generate") / "g"
    return str(random_graft(tiny_llama, out, hidden=8, heads=2, ffn=16))


def test_text_tokens_and_signals(otter_here: Otter, folder: str) -> None:
    shown = otter_here("generate", folder, "hello", "--max-new-tokens", "9", "--json")
    data = json.loads(shown.stdout)
    assert len(data["tokens"]) == 9 and data["text"]
    assert {name: len(values) for name, values in data["signals"].items()} == {
        "reward": 9,
        "toxicity": 9,
    }
    assert all(0 <= p <= 1 for p in data["signals"]["toxicity"])
    assert data["counters"]["base_passes"] == 10
    assert "untrained" in shown.stderr


def test_a_page_for_people(otter_here: Otter, folder: str) -> None:
    page = otter_here("generate", folder, "hello", "--max-new-tokens", "40").stdout
    assert "logprob" in page and "reward" in page and "passes of the base" in page
    assert max(map(len, page.splitlines())) <= 100


def test_guided_drafted_and_plain(otter_here: Otter, folder: str) -> None:
    def text(*options: str) -> str:
        run = otter_here("generate", folder, "hello", "--max-new-tokens", "16", "--json", *options)
        return json.loads(run.stdout)["text"]

    plain = text()
    assert text("--guide", "reward", "--strength", "0") == plain
    assert text("--draft", "future") == plain
    assert text("--draft", "prompt-lookup") == plain
    assert text("--guide", "reward", "--strength", "9") != plain


def test_many_prompts(otter_here: Otter, folder: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    run = otter_here("generate", folder, "--file", str(tmp_path / "prompts.jsonl"), "--json")
    assert [g["prompt"] for g in json.loads(run.stdout)["generations"]] == ["one", "two"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give a prompt"),
        (("x", "--guide", "rewrd"), "'rewrd'"),
        (("x", "--signal", "nothing"), "'nothing'"),
        (("x", "--draft", "reward"), "no future signal"),
        (("x" * 120,), "window of 128"),
        (("x", "--guide", "reward", "--draft", "future"), "at once"),
        (("x", "--file", "nowhere.txt"), "not both"),
    ],
)
def test_refusals(otter_here: Otter, folder: str, arguments: tuple[str, ...], words: str) -> None:
    run = otter_here("generate", folder, *arguments)
    assert run.returncode == 2 and run.stdout == ""
    assert words in run.stderr and "hint:" in run.stderr and "Traceback" not in run.stderr
