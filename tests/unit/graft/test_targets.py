"""Targets that cannot take a graft are refused with a hint, and nothing is left behind."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from otter_cli.core.atomic import writer_lock
from otter_cli.core.errors import OtterError
from otter_cli.graft.manifest import Manifest
from tests.support.grafts import graft_for
from tests.unit.core.disks import mounted


@pytest.fixture(params=["size=128k", "size=1m,ro"], ids=["full", "read-only"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, str]]:
    with mounted(tmp_path / "disk", request.param) as folder:
        yield folder, "Read-only" if "ro" in request.param else "No space left"


def test_a_disk_that_takes_no_more(tiny_llama: Path, disk: tuple[Path, str]) -> None:
    folder, words = disk
    with pytest.raises(OtterError, match=words) as caught:
        graft_for(tiny_llama, folder / "out", hidden=8)
    assert str(folder) in caught.value.what and "choose a target" in caught.value.hint
    assert list(folder.iterdir()) == []


def test_a_target_that_is_being_written(tiny_llama: Path, tmp_path: Path) -> None:
    with writer_lock(tmp_path / "out"):
        with pytest.raises(OtterError, match=r"\.out\.otter-lock is locked") as caught:
            graft_for(tiny_llama, tmp_path / "out", hidden=8)
        assert "wait until it ends" in caught.value.hint
    graft_for(tiny_llama, tmp_path / "out", hidden=8)


def test_of_two_grafts_at_once_one_is_written(tiny_llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "otter_cli", "graft", str(tiny_llama), str(out), "--quiet"]
    pipe = subprocess.PIPE
    both = [subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) for _ in range(2)]
    said = [child.communicate(timeout=300)[1] for child in both]
    assert sorted(child.returncode for child in both) == [0, 2]
    (loser,) = [text for text, child in zip(said, both, strict=True) if child.returncode]
    assert "exists already" in loser or "is locked" in loser
    Manifest.read(out).check_tensors(out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
