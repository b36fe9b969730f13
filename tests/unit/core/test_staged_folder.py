"""Folders appear whole or not at all."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import otter_cli
from otter_cli.core.atomic import staged_folder
from otter_cli.core.errors import OtterError
from tests.unit.core.test_atomic import names


def test_the_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "runs" / "out"
    with staged_folder(target) as staging:
        (staging / "sub").mkdir()
        (staging / "sub" / "file").write_text("x")
        assert staging.parent == target.parent
        assert not target.exists()
    assert (target / "sub" / "file").read_text() == "x"
    assert names(target.parent) == ["out"]


def fail_halfway(target: Path, error: type[BaseException], *, overwrite: bool = False) -> None:
    with staged_folder(target, overwrite=overwrite) as staging:
        (staging / "new").touch()
        raise error


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, SystemExit])
def test_a_failed_block_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        fail_halfway(tmp_path / "out", error)
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_an_existing_target_is_refused(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "out"
    if kind == "folder":
        target.mkdir()
    elif kind == "file":
        target.touch()
    else:
        target.symlink_to("nowhere")
    with pytest.raises(OtterError, match="exists already") as caught, staged_folder(target):
        pytest.fail("the block must not run")
    assert caught.value.hint
    assert names(tmp_path) == ["out"]


def test_overwriting_replaces_the_whole_folder(tmp_path: Path) -> None:
    for name in ("old", "new"):
        with staged_folder(tmp_path / "out", overwrite=True) as staging:
            (staging / name).touch()
    assert names(tmp_path / "out") == ["new"]
    assert names(tmp_path) == ["out"]


def test_a_failed_overwrite_keeps_the_old_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with pytest.raises(ZeroDivisionError):
        fail_halfway(tmp_path / "out", ZeroDivisionError, overwrite=True)
    assert names(tmp_path / "out") == ["old"]


def test_a_target_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "out"

    def race() -> None:
        with staged_folder(target) as staging:
            (staging / "ours").touch()
            target.mkdir()
            (target / "theirs").touch()

    with pytest.raises(OtterError, match="cannot write"):
        race()
    assert names(target) == ["theirs"]
    assert names(tmp_path) == ["out"]


def test_two_writers_in_two_processes(tmp_path: Path) -> None:
    code = (
        "import sys; from otter_cli.core.atomic import staged_folder\n"
        "with staged_folder(sys.argv[1]) as staging:\n"
        "    (staging / 'first').touch(); print('inside', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "inside\n"
        with pytest.raises(OtterError, match="another otter is writing here") as caught:
            staged_folder(tmp_path / "out").__enter__()
        assert str(tmp_path / ".out.otter-lock") in caught.value.what
        other.communicate()
    assert other.returncode == 0
    assert names(tmp_path / "out") == ["first"]
    assert names(tmp_path) == ["out"]


def test_leftovers_of_a_killed_run_are_cleaned(tmp_path: Path) -> None:
    (tmp_path / ".out.otter-staging" / "deep").mkdir(parents=True)
    (tmp_path / ".out.otter-staging" / "deep" / "half").write_text("x")
    (tmp_path / ".out.otter-lock").touch()
    with staged_folder(tmp_path / "out") as staging:
        assert names(staging) == []
    assert names(tmp_path) == ["out"]


def test_a_run_killed_between_two_renames_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / ".out.otter-previous").mkdir()
    (tmp_path / ".out.otter-previous" / "old").touch()
    with pytest.raises(OtterError, match="exists already"), staged_folder(tmp_path / "out"):
        pytest.fail("the old folder is back, and must not be overwritten")
    assert names(tmp_path / "out") == ["old"]
    assert names(tmp_path) == ["out"]


def test_a_full_disk_leaves_nothing(small_disk: Path) -> None:
    def fill() -> None:
        with staged_folder(small_disk / "out") as staging:
            (staging / "small").write_bytes(b"x")
            (staging / "large").write_bytes(bytes(2**21))

    with pytest.raises(OtterError, match="No space left") as caught:
        fill()
    assert "free some space" in caught.value.hint
    assert names(small_disk) == []


def test_a_read_only_target_is_refused(read_only_disk: Path) -> None:
    target = read_only_disk / "out"
    with pytest.raises(OtterError, match="Read-only") as caught, staged_folder(target):
        pytest.fail("the block must not run")
    assert "choose a target you can write to" in caught.value.hint


def test_a_parent_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OtterError, match="cannot write"), staged_folder(tmp_path / "file" / "out"):
        pytest.fail("the block must not run")


def test_a_name_too_long_is_refused(tmp_path: Path) -> None:
    target = tmp_path / ("x" * 250)
    with pytest.raises(OtterError, match="too long") as caught, staged_folder(target):
        pytest.fail("the block must not run")
    assert "shorter" in caught.value.hint


@pytest.mark.parametrize(
    ("target", "what"),
    [
        ("base", "is the folder that is read"),
        ("base/sub", "lies inside"),
        ("base/deep/er", "lies inside"),
        ("link", "is the folder that is read"),
        ("link/sub", "lies inside"),
        ("base/../base/sub", "lies inside"),
        (".", "holds"),
    ],
)
def test_a_target_that_overlaps_a_source_is_refused(tmp_path: Path, target: str, what: str) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "link").symlink_to("base")
    for overwrite in (False, True):
        staged = staged_folder(tmp_path / target, sources=[tmp_path / "base"], overwrite=overwrite)
        with pytest.raises(OtterError, match=what) as refused, staged:
            pass
        assert refused.value.hint
    assert list((tmp_path / "base").iterdir()) == []


def test_a_target_beside_a_source_of_a_similar_name_is_fine(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    with staged_folder(tmp_path / "base-2", sources=[tmp_path / "base"]) as staging:
        (staging / "file").touch()
    assert (tmp_path / "base-2" / "file").exists()


def test_every_writer_of_a_folder_says_what_it_reads() -> None:
    package = Path(otter_cli.__file__).parent
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "staged_folder":
                given = {keyword.arg for keyword in node.keywords}
                assert "sources" in given, f"{path}, line {node.lineno}: which folders are read?"
