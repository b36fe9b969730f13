"""A killed writer's lock names its process, blocks no writer, and is removed by the next one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from otter_cli.core.atomic import writer_lock
from otter_cli.core.errors import OtterError

_HOLD = """
import sys, time
from pathlib import Path
from otter_cli.core.atomic import writer_lock
with writer_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
_COME_AND_GO = """
import sys
from pathlib import Path
from otter_cli.core.atomic import writer_lock
for _ in range(200):
    with writer_lock(Path(sys.argv[1])):
        pass
"""


def holder(target: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", _HOLD, str(target)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "held\n"
    return child


def test_a_lock_of_a_killed_writer_is_removed_by_the_next_one_beside_it(tmp_path: Path) -> None:
    dead, alive = holder(tmp_path / "dead"), holder(tmp_path / "alive")
    os.kill(dead.pid, signal.SIGKILL)
    dead.wait()
    lock = tmp_path / ".dead.otter-lock"
    assert lock.read_text().startswith(f"process {dead.pid} ")
    with writer_lock(tmp_path / "another"):
        assert not lock.exists() and (tmp_path / ".alive.otter-lock").exists()
        held = pytest.raises(OtterError, match=f"process {alive.pid} ")
        with held, writer_lock(tmp_path / "alive"):
            pass
    alive.kill()
    alive.wait()
    assert [path.name for path in tmp_path.iterdir()] == [".alive.otter-lock"]
    with writer_lock(tmp_path / "alive"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_writers_side_by_side_do_not_take_each_other_for_dead(tmp_path: Path) -> None:
    """Several writers remove old locks at the same time."""
    commands = [[sys.executable, "-c", _COME_AND_GO, str(tmp_path / name)] for name in "abc"]
    children = [subprocess.Popen(command) for command in commands]
    assert [child.wait(timeout=60) for child in children] == [0, 0, 0]
    assert list(tmp_path.iterdir()) == []
