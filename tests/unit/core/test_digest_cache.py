"""A large file is hashed once, and again after a change."""

import hashlib
import os
import time
from pathlib import Path

import pytest

from otter_cli.core import digests
from otter_cli.core.digests import DigestCache, default_digest_cache_path
from otter_cli.core.errors import OtterError

LARGE = bytes(2**20)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were really read."""
    found: list[Path] = []
    real = digests.sha256_file

    def counted(path: Path, advance: digests.Advance | None = None) -> str:
        found.append(path)
        return real(path, advance)

    monkeypatch.setattr(digests, "sha256_file", counted)
    return found


def settled(path: Path, content: bytes = LARGE, age: float = 60) -> Path:
    path.write_bytes(content)
    then = time.time() - age
    os.utime(path, (then, then))
    return path


def test_the_second_run_does_not_read(tmp_path: Path, reads: list[Path]) -> None:
    path = settled(tmp_path / "f")
    told: list[int] = []
    digests = {DigestCache().sha256(path, told.append) for _ in range(2)}
    assert digests == {hashlib.sha256(LARGE).hexdigest()}
    assert reads == [path]
    assert sum(told) == 2 * len(LARGE)


def test_a_hard_link_is_the_same_file(tmp_path: Path, reads: list[Path]) -> None:
    path = settled(tmp_path / "f")
    DigestCache().sha256(path)
    (tmp_path / "link").hardlink_to(path)
    DigestCache().sha256(tmp_path / "link")
    assert reads == [path]


def test_changed_content_is_read_again(tmp_path: Path, reads: list[Path]) -> None:
    path = settled(tmp_path / "f")
    DigestCache().sha256(path)
    settled(path, b"x" + LARGE[1:], age=30)
    assert DigestCache().sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(reads) == 2


def test_a_replaced_file_is_read_again(tmp_path: Path, reads: list[Path]) -> None:
    path = settled(tmp_path / "f")
    DigestCache().sha256(path)
    other = settled(tmp_path / "g", b"x" + LARGE[1:])
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.rename(path)
    assert DigestCache().sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(reads) == 2


def test_a_file_just_written_is_not_remembered(tmp_path: Path, reads: list[Path]) -> None:
    path = settled(tmp_path / "f", age=0)
    for _ in range(2):
        DigestCache().sha256(path)
    assert len(reads) == 2


def test_small_files_are_not_worth_remembering(tmp_path: Path) -> None:
    DigestCache().sha256(settled(tmp_path / "f", b"small"))
    assert not default_digest_cache_path().exists()


def test_a_spoilt_list_is_started_anew(
    tmp_path: Path, reads: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = settled(tmp_path / "f")
    DigestCache().sha256(path)
    default_digest_cache_path().write_text("spoilt\n")
    assert DigestCache().sha256(path) == hashlib.sha256(LARGE).hexdigest()
    assert "starting a new list of digests" in capsys.readouterr().err
    DigestCache().sha256(path)
    assert len(reads) == 2


def test_a_list_that_cannot_be_kept_only_costs_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    cache = DigestCache(tmp_path / "file" / "digests.jsonl")
    path = settled(tmp_path / "f")
    assert cache.sha256(path) == hashlib.sha256(LARGE).hexdigest()
    assert "not remembered" in capsys.readouterr().err


def test_a_file_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    path = settled(tmp_path / "f")
    with pytest.raises(OtterError, match="changed while it was being read"):
        DigestCache().sha256(path, lambda _: os.utime(path))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OtterError, match="No such file"):
        DigestCache().sha256(tmp_path / "none")


@pytest.mark.parametrize("fault", ["folder", "foreign", "link", "file", "linked file"])
def test_a_list_that_others_can_write_vouches_for_nothing(
    tmp_path: Path,
    reads: list[Path],
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = settled(tmp_path / "f")
    DigestCache().sha256(path)
    kept = default_digest_cache_path()
    forged = kept.read_text().replace(hashlib.sha256(LARGE).hexdigest(), "0" * 64)
    kept.write_text(forged)
    assert DigestCache().sha256(path) == "0" * 64  # the effect of a forged list
    if fault == "folder":
        kept.parent.chmod(0o777)
    elif fault == "foreign":
        owner = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    elif fault == "link":
        kept.parent.rename(tmp_path / "elsewhere")
        kept.parent.symlink_to(tmp_path / "elsewhere")
    elif fault == "file":
        kept.chmod(0o666)
    else:
        kept.rename(kept.with_name("elsewhere"))
        kept.symlink_to("elsewhere")
    assert DigestCache().sha256(path) == hashlib.sha256(LARGE).hexdigest()
    assert reads == [path, path]
    assert "remembered" in capsys.readouterr().err
    assert kept.read_text() == forged  # nothing is written there either


def test_the_list_is_this_users_alone(tmp_path: Path) -> None:
    mask = os.umask(0o002)
    try:
        DigestCache().sha256(settled(tmp_path / "f"))
    finally:
        os.umask(mask)
    kept = default_digest_cache_path()
    assert kept.stat().st_mode & 0o777 == 0o600
    assert kept.parent.stat().st_mode & 0o777 == 0o700


def test_the_list_lies_in_the_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/some/cache")
    assert default_digest_cache_path() == Path("/some/cache/otter/digests.jsonl")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/otter")
    assert default_digest_cache_path() == Path("/home/otter/.cache/otter/digests.jsonl")
