"""Files are linked or copied byte for byte, with the digests of sha256sum."""

import errno
import hashlib
import os
from pathlib import Path

import pytest

from otter_cli.checkpoint import link_or_copy
from otter_cli.checkpoint.link_or_copy import PlacementMode, copy_file, hard_linked, place_files
from otter_cli.core.atomic import staged_folder
from otter_cli.core.digests import CHUNK_BYTES
from otter_cli.core.errors import OtterError
from tests.unit.checkpoint.crafted import single
from tests.unit.checkpoint.test_folder import hub_snapshot

FILES = ["config.json", "model.safetensors", "original/params.json", "tool.sh"]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = single(tmp_path / "base", "a", "b")
    (folder / "original").mkdir()
    (folder / "original" / "params.json").write_text("{}")
    (folder / "tool.sh").write_text("#!/bin/sh\n")
    (folder / "tool.sh").chmod(0o750)
    os.utime(folder / "tool.sh", (10**9, 10**9))
    return folder


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("mode", ["link", "copy"])
def test_content_mode_time_and_digest(base: Path, tmp_path: Path, mode: PlacementMode) -> None:
    out = tmp_path / "out"
    records = place_files(base, FILES, out, mode=mode)
    assert list(records) == FILES
    for file, record in records.items():
        placed, source = out / file, base / file
        assert placed.read_bytes() == source.read_bytes()
        assert placed.stat().st_mode == source.stat().st_mode
        assert placed.stat().st_mtime_ns == source.stat().st_mtime_ns
        assert record == {"bytes": source.stat().st_size, "sha256": digest(source)}
        assert placed.samefile(source) == (mode == "link" and file == "model.safetensors")
    assert hard_linked(base, FILES, out) == (["model.safetensors"] if mode == "link" else [])


@pytest.mark.parametrize("mode", ["link", "copy"])
def test_progress_adds_up(base: Path, tmp_path: Path, mode: PlacementMode) -> None:
    told: list[int] = []
    records = place_files(base, FILES, tmp_path / "out", mode=mode, advance=told.append)
    assert sum(told) == sum(record["bytes"] for record in records.values())


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 7])
def test_copies_around_the_chunk_size(tmp_path: Path, size: int) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(size))
    assert copy_file(source, tmp_path / "target") == digest(source)
    assert (tmp_path / "target").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("mode", ["link", "copy"])
def test_a_snapshot_of_the_hub_is_placed_as_plain_files(
    tmp_path: Path, mode: PlacementMode
) -> None:
    snapshot = hub_snapshot(tmp_path / "hub")
    out = tmp_path / "out"
    place_files(snapshot, ["config.json", "model.safetensors"], out, mode=mode)
    for file in ("config.json", "model.safetensors"):
        assert not (out / file).is_symlink()
        assert (out / file).read_bytes() == (snapshot / file).read_bytes()
    blob = tmp_path / "hub" / "blobs" / "ab" / "abcdef"
    assert (out / "model.safetensors").samefile(blob) == (mode == "link")


def test_another_file_system_gets_a_copy(base: Path, small_disk: Path) -> None:
    records = place_files(base, FILES, small_disk / "out")
    for file in FILES:
        assert digest(small_disk / "out" / file) == records[file]["sha256"]
        assert (small_disk / "out" / file).stat().st_mode == (base / file).stat().st_mode


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_without_hard_links_there_is_a_copy(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, "no hard links here")

    monkeypatch.setattr(link_or_copy.os, "link", refuse)
    records = place_files(base, FILES, tmp_path / "out")
    for file in FILES:
        assert not (tmp_path / "out" / file).samefile(base / file)
        assert digest(tmp_path / "out" / file) == records[file]["sha256"]


def test_a_real_failure_to_link_is_no_reason_to_copy(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(link_or_copy.os, "link", fail)
    with pytest.raises(OtterError, match="Input/output error"):
        place_files(base, FILES, tmp_path / "out")


@pytest.mark.parametrize("file", ["../secret", "/etc/passwd", "none", "a\nb"])
def test_only_files_of_the_base_are_placed(base: Path, tmp_path: Path, file: str) -> None:
    (tmp_path / "secret").touch()
    with pytest.raises(OtterError):
        place_files(base, [file], tmp_path / "out")


@pytest.mark.parametrize("mode", ["link", "copy"])
def test_nothing_is_overwritten(base: Path, tmp_path: Path, mode: PlacementMode) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tool.sh").write_text("mine")
    with pytest.raises(OtterError, match="File exists"):
        place_files(base, ["tool.sh"], tmp_path / "out", mode=mode)
    assert (tmp_path / "out" / "tool.sh").read_text() == "mine"


def test_a_full_disk_leaves_nothing(base: Path, small_disk: Path) -> None:
    (base / "large").write_bytes(bytes(2**21))

    def fill() -> None:
        with staged_folder(small_disk / "out") as staging:
            place_files(base, [*FILES, "large"], staging, mode="copy")

    with pytest.raises(OtterError, match="No space left") as caught:
        fill()
    assert "free some space" in caught.value.hint
    assert list(small_disk.iterdir()) == []
