"""The commands of README and docs run, on a tiny base, and print what the pages say they print.

A page marks a block of commands, or of Python, with `<!-- run -->`. With `<!-- run and compare -->`
each line that the page shows has to be printed, apart from its numbers. The commands of a page run
in one folder, one after another.
"""

import csv
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Otter
from tests.support.gguf_files import write_gguf
from tests.support.grafts import chat_base

ROOT = Path(__file__).resolve().parents[2]
_BLOCK = re.compile(
    r"<!-- run(?P<compare> and compare)? -->\n```console\n(?P<text>.*?)```", re.DOTALL
)
_PYTHON = re.compile(r"<!-- run -->\n```python\n(.*?)```", re.DOTALL)
_TEACHER = re.compile(r"`teacher.py`.*?```python\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Command:
    line: str
    shown: tuple[str, ...]


def commands(page: Path) -> Iterator[Command]:
    """The commands that a page marks, each with the lines to compare."""
    for block in _BLOCK.finditer(page.read_text()):
        for part in block["text"].removeprefix("$ ").split("\n$ "):
            line, *shown = part.strip().split("\n")
            line = line.partition("  # ")[0].strip()
            yield Command(line, tuple(shown) if block["compare"] else ())


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


RUN = [page for page in pages() if any(commands(page))]


def _without_numbers(line: str) -> str:
    """The words of a line: numbers with their units, bars and spaces are equal in all lines."""
    line = re.sub(r"\d[\d.,]*(?: (?:[kMG]B?|B|s|ms|min|%)\b)*", "0", line)
    return " ".join(re.sub(r"(?:0 )+0\b", "0", " ".join(line.split())).split())


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the pages name: a base, a GGUF file, data and a teacher."""
    chat_base(tiny_llama, tmp_path / "base-of-the-page")
    write_gguf(tmp_path / "model.gguf", tokenizer=True)
    rows = [
        {"prompt": f"how {n}", "chosen": f"fine {n}", "rejected": f"bad {n}"} for n in range(24)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (tmp_path / "comments.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["comment", "toxic"])
        writer.writerows([f"text {n} {'bad' if n % 2 else 'good'}", n % 2] for n in range(40))
    (tmp_path / "texts.txt").write_text("".join(f"a line of text {n}\n" * 3 for n in range(40)))
    (tmp_path / "prompts.txt").write_text("".join(f"hello {n}\n" for n in range(24)))
    (tmp_path / "teacher.py").write_text(
        _TEACHER.search((ROOT / "docs/how-to/own-data.md").read_text())[1]
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_the_readme_and_the_how_to_pages_have_commands_that_run() -> None:
    names = {str(page.relative_to(ROOT)) for page in RUN}
    assert {"README.md", "docs/quickstart.md", "docs/how-to/own-data.md"} <= names


@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page_run(page: Path, folder: Path, otter_here: Otter) -> None:
    listed = list(commands(page))
    if not any(" import " in command.line for command in listed):
        (folder / "base-of-the-page").rename(folder / "base")
    for command in listed:
        program, *arguments = shlex.split(command.line)
        assert program == "otter", command.line
        steps = ["--set", "steps=2"] if arguments[0] == "train" else []
        if steps and "--resume" not in arguments:
            arguments += steps
        result = otter_here(*arguments)
        printed = result.stdout + result.stderr
        assert result.returncode == 0, f"{command.line}\n{printed}"
        words = {_without_numbers(line) for line in printed.splitlines()}
        absent = [line for line in command.shown if _without_numbers(line) not in words | {"..."}]
        assert not absent, f"{command.line} prints\n{printed}"
    for code in _PYTHON.findall(page.read_text()):
        exec(compile(code, str(page), "exec"), {})
