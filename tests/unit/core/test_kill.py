"""After SIGKILL at a random moment, an output is complete or absent, and the next run succeeds."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from otter_cli.core.atomic import staged_file, staged_folder
from tests.unit.core.test_atomic import names

KILLS = 10
FILES = 12

# Both writers repeat the same output, with the number of the round in it.
FOLDER_WRITER = """
import itertools, sys
from pathlib import Path
from otter_cli.core.atomic import staged_folder
print("ready", flush=True)
for number in itertools.count():
    with staged_folder(sys.argv[1], overwrite=True) as staging:
        for file in range(int(sys.argv[2])):
            Path(staging, str(file)).write_text(f"{number} " * 2000)
"""
FILE_WRITER = """
import itertools, sys
from otter_cli.core.atomic import write_text
print("ready", flush=True)
for number in itertools.count():
    write_text(sys.argv[1], f"{number} " * 100_000)
"""


def run_and_kill(code: str, target: Path, seconds: float) -> None:
    command = [sys.executable, "-c", code, str(target), str(FILES)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(seconds)
        child.kill()
    assert child.returncode == -9


def rounds(text: str) -> set[str]:
    return set(text.split())


@pytest.mark.parametrize("kill", range(KILLS))
def test_folder(tmp_path: Path, kill: int) -> None:
    target = tmp_path / "out"
    run_and_kill(FOLDER_WRITER, target, random.Random(kill).uniform(0, 0.05))
    if target.exists():
        assert names(target) == sorted(str(file) for file in range(FILES))
        texts = [path.read_text() for path in target.iterdir()]
        assert all(text.count(" ") == 2000 for text in texts)
        assert len(rounds(" ".join(texts))) == 1
    with staged_folder(target, overwrite=True) as staging:
        (staging / "next").touch()
    assert names(target) == ["next"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("kill", range(KILLS))
def test_file(tmp_path: Path, kill: int) -> None:
    target = tmp_path / "otter.json"
    run_and_kill(FILE_WRITER, target, random.Random(kill).uniform(0, 0.05))
    if target.exists():
        text = target.read_text()
        assert len(rounds(text)) == 1 and text.count(" ") == 100_000
    with staged_file(target) as file:
        file.write(b"next")
    assert target.read_bytes() == b"next"
    assert names(tmp_path) == ["otter.json"]
