"""Single files are replaced in one step, or not changed."""

import json
import math
from pathlib import Path

import pytest

from otter_cli.core.atomic import staged_file, write_bytes, write_json, write_text
from otter_cli.core.errors import OtterError


def names(folder: Path) -> list[str]:
    return sorted(child.name for child in folder.iterdir())


def test_content_is_replaced_and_nothing_is_left_beside(tmp_path: Path) -> None:
    path = tmp_path / "proof.json"
    write_text(path, "old")
    write_json(path, {"verdict": "exact", "name": "é"})
    assert json.loads(path.read_text()) == {"verdict": "exact", "name": "é"}
    assert names(tmp_path) == ["proof.json"]


def test_a_failed_block_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "tensors"
    write_bytes(path, b"old")

    def fail_halfway() -> None:
        with staged_file(path) as file:
            file.write(b"new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_halfway()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["tensors"]


def test_the_new_content_is_invisible_until_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "tensors"
    with staged_file(path) as file:
        file.write(b"half")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b"half"


def test_new_files_get_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_text(tmp_path / "ours", "")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_two_writers_of_one_file_are_kept_apart(tmp_path: Path) -> None:
    path = tmp_path / "otter.json"
    with staged_file(path) as file:
        file.write(b"first")
        with pytest.raises(OtterError, match=r"\.otter\.json\.otter-lock"):
            write_bytes(path, b"second")
    assert path.read_bytes() == b"first"


def test_what_a_killed_run_left_is_not_in_the_way(tmp_path: Path) -> None:
    (tmp_path / ".f.otter-staging").write_bytes(b"a longer half-written file")
    (tmp_path / ".f.otter-lock").touch()
    write_bytes(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"new"
    assert names(tmp_path) == ["f"]


def test_a_planted_link_is_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"keep")
    (tmp_path / ".f.otter-staging").symlink_to(victim)
    write_bytes(tmp_path / "f", b"new")
    assert victim.read_bytes() == b"keep"


def test_nan_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "f.json", {"loss": math.nan})
    assert names(tmp_path) == []


def test_a_full_disk_keeps_the_old_content(small_disk: Path) -> None:
    path = small_disk / "tensors"
    write_bytes(path, b"old")
    with pytest.raises(OtterError, match="No space left") as caught:
        write_bytes(path, bytes(2**21))
    assert "free some space" in caught.value.hint
    assert path.read_bytes() == b"old"
    assert names(small_disk) == ["tensors"]


def test_a_read_only_place_is_refused(read_only_disk: Path) -> None:
    with pytest.raises(OtterError, match="Read-only file system") as caught:
        write_text(read_only_disk / "f", "x")
    assert "read-only" in caught.value.hint


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OtterError, match="No such file"):
        write_text(tmp_path / "none" / "f", "x")
