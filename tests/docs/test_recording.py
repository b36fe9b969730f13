"""The recording of the quick start is what was recorded, and the pages quote it."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.docs.test_commands import commands

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "docs/images"


@pytest.fixture(scope="module")
def recorder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("recorder", IMAGES / "record_quickstart.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def steps() -> list[dict[str, Any]]:
    return json.loads((IMAGES / "quickstart.json").read_text())["steps"]


def test_the_drawing_is_made_of_the_recording(
    recorder: ModuleType, steps: list[dict[str, Any]]
) -> None:
    drawn = recorder.draw(steps)
    assert drawn == (IMAGES / "quickstart.svg").read_text()
    assert 15 < float(re.search(r"row \{ animation: ([\d.]+)s", drawn)[1]) < 30
    assert "http://" not in drawn.replace("http://www.w3.org/2000/svg", "")


def test_the_recording_has_the_commands_that_the_script_runs(
    recorder: ModuleType, steps: list[dict[str, Any]]
) -> None:
    assert [step["command"] for step in steps] == recorder.COMMANDS


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_outputs_on_the_page_are_those_of_the_recording(
    page: str, recorder: ModuleType, steps: list[dict[str, Any]]
) -> None:
    text = (ROOT / page).read_text()
    recorded = {step["command"]: set(map(recorder.plain, step["output"])) for step in steps}
    quoted = 0
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        for part in block.removeprefix("$ ").split("\n$ "):
            line, *shown = part.strip().split("\n")
            lines = recorded.get(line.partition("  # ")[0].strip())
            if lines is not None:
                quoted += len(shown)
                assert [s for s in shown if s.rstrip() not in lines | {"..."}] == []
    assert quoted >= 10 and any(commands(ROOT / page))


@pytest.mark.parametrize(
    ("printed", "lines"),
    [
        ("one\r\ntwo\r\n", ["one", "two"]),
        ("10 %\r\x1b[2K20 %\r\x1b[2Kdone\r\n", ["done"]),
        ("\x1b[?25lbar\r\n\x1b[?25h\x1b[1A\x1b[2Kdone\r\n", ["done"]),
        ("\x1b[1mbold\x1b[0m\r\n\r\n", ["\x1b[1mbold\x1b[0m"]),
    ],
)
def test_progress_bars_leave_nothing_behind(
    recorder: ModuleType, printed: str, lines: list[str]
) -> None:
    assert recorder.screen(printed) == lines
