"""Compiled code is loaded only where no other user can have written it, and only as it was
compiled."""

import ctypes
import hashlib
import importlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from otter_cli.accel import native_abi
from otter_cli.accel.native_library import load_compiled
from otter_cli.core.private_files import NotPrivate

native: Any = importlib.import_module("otter_cli.accel.native_library")
KEY = "0123abcd"
FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with one function, which gives 42."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no compiler here")
    folder = tmp_path_factory.mktemp("built")
    (folder / "answer.cpp").write_text('extern "C" int answer() { return 42; }\n')
    command = [compiler, "-shared", "-fPIC", "answer.cpp", "-o", "answer.so"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "answer.so"


class Compiler:
    """Copies what was built, and notes in a file that it did."""

    def __init__(self, built: Path, log: Path, seconds: float = 0.0) -> None:
        self.built, self.log, self.seconds = built, log, seconds

    def __call__(self, to: Path) -> None:
        with open(self.log, "a") as log:
            log.write("compiled\n")
        to.write_bytes(self.built.read_bytes()[:1000])
        time.sleep(self.seconds)
        to.write_bytes(self.built.read_bytes())

    @property
    def times(self) -> int:
        return self.log.read_text().count("compiled") if self.log.exists() else 0


@pytest.fixture
def compiler(built: Path, tmp_path: Path) -> Compiler:
    return Compiler(built, tmp_path / "log")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "otter"


def answer(folder: Path, compiler: Callable[[Path], None], **options: Any) -> int:
    return int(load_compiled(folder, KEY, compiler, **options).answer())


def entry(folder: Path, built: Path, content: bytes) -> Path:
    """What lies under the name of what was built. It is not loaded here: who truncates a library
    that a process has loaded kills the process."""
    folder.mkdir(parents=True, mode=0o700)
    path = folder / f"stream-{KEY}-{hashlib.sha256(built.read_bytes()).hexdigest()}.so"
    path.write_bytes(content)
    path.chmod(0o700)
    return path


def test_it_is_compiled_once_under_the_digest_of_its_bytes(
    folder: Path, compiler: Compiler
) -> None:
    mask = os.umask(0o002)
    try:
        assert answer(folder, compiler) == answer(folder, compiler) == 42
    finally:
        os.umask(mask)
    assert compiler.times == 1
    (kept,) = folder.iterdir()
    digest = hashlib.sha256(compiler.built.read_bytes()).hexdigest()
    assert kept.name == f"stream-{KEY}-{digest}.so"
    assert folder.stat().st_mode & 0o777 == kept.stat().st_mode & 0o777 == 0o700


def test_an_entry_as_it_was_compiled_is_loaded(
    folder: Path, built: Path, compiler: Compiler
) -> None:
    """Else the tests of spoilt ones would show nothing."""
    entry(folder, built, built.read_bytes())
    assert answer(folder, compiler) == 42 and compiler.times == 0


def _flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "spoil", [lambda b: b[: len(b) // 2], lambda b: b"", _flipped, lambda b: b + b"\0"],
    ids=["truncated", "empty", "a flipped bit", "a byte more"],
)  # fmt: skip
def test_a_spoilt_entry_is_compiled_again(
    folder: Path, built: Path, compiler: Compiler, spoil: Callable[[bytes], bytes]
) -> None:
    entry(folder, built, spoil(built.read_bytes()))
    assert answer(folder, compiler) == 42 and compiler.times == 1
    (kept,) = folder.iterdir()
    assert kept.read_bytes() == built.read_bytes()


@pytest.mark.parametrize("what", ["link", "folder", "fifo", "writable by others", "foreign"])
def test_an_entry_that_is_no_file_of_ours_is_compiled_again(
    folder: Path, built: Path, compiler: Compiler, what: str
) -> None:
    path = entry(folder, built, built.read_bytes())
    if what == "writable by others":
        path.chmod(0o722)
    elif what == "foreign":
        if os.geteuid() != 0:
            pytest.skip("only root gives files away")
        os.chown(path, 12345, 12345)
    else:
        path.unlink()
        make = {"link": lambda: path.symlink_to(built), "folder": path.mkdir}
        make.get(what, lambda: os.mkfifo(path))()
    assert answer(folder, compiler) == 42 and compiler.times == 1
    assert built.exists()


def test_a_folder_of_another_user_is_refused(
    folder: Path, built: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry(folder, built, built.read_bytes())
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(NotPrivate, match="belongs to another user"):
        answer(folder, compiler)
    assert compiler.times == 0


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702, 0o1777])
def test_a_folder_that_others_can_write_is_refused(
    folder: Path, built: Path, compiler: Compiler, mode: int
) -> None:
    entry(folder, built, built.read_bytes())
    folder.chmod(mode)
    with pytest.raises(NotPrivate, match="can be written by other users"):
        answer(folder, compiler)
    assert compiler.times == 0


def test_a_folder_that_others_can_only_read_is_closed(folder: Path, compiler: Compiler) -> None:
    folder.mkdir(parents=True, mode=0o755)
    folder.chmod(0o755)
    assert answer(folder, compiler) == 42
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_linked_folder_is_refused(
    folder: Path, built: Path, compiler: Compiler, tmp_path: Path
) -> None:
    entry(tmp_path / "elsewhere", built, built.read_bytes())
    folder.parent.mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotPrivate, match="is a link"):
        answer(folder, compiler)
    assert compiler.times == 0


def test_a_killed_compilation_leaves_nothing_that_counts(
    folder: Path, built: Path, compiler: Compiler
) -> None:
    slow = Compiler(built, compiler.log, seconds=60)
    child = FORK.Process(target=answer, args=(folder, slow))
    child.start()
    until = time.monotonic() + 20
    while not list(folder.glob(".stream-*")) and time.monotonic() < until:
        time.sleep(0.02)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert list(folder.glob(".stream-*")) and not list(folder.glob("stream-*"))
    assert answer(folder, compiler) == 42
    assert [path.name.split("-")[0] for path in folder.iterdir()] == ["stream"]


def test_processes_that_want_it_at_once_compile_it_once(
    folder: Path, built: Path, compiler: Compiler
) -> None:
    slow = Compiler(built, compiler.log, seconds=0.5)

    def load() -> None:
        os._exit(0 if answer(folder, slow) == 42 else 1)

    children = [FORK.Process(target=load) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert compiler.times == 1


def test_nobody_waits_for_ever(folder: Path, compiler: Compiler) -> None:
    import fcntl

    folder.mkdir(parents=True, mode=0o700)
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(TimeoutError, match="another process compiles"):
            answer(folder, compiler, patience=0.1)
    finally:
        os.close(held)
    assert answer(folder, compiler) == 42


def test_a_compiler_that_fails_leaves_nothing(folder: Path) -> None:
    def fail(to: Path) -> None:
        to.write_bytes(b"half")
        raise subprocess.CalledProcessError(1, "c++")

    with pytest.raises(subprocess.CalledProcessError):
        answer(folder, fail)
    assert list(folder.iterdir()) == []


def test_the_key_is_of_source_compiler_flags_and_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler, other = tmp_path / "cc", tmp_path / "other"
    for path in (compiler, other):
        path.write_text("#!/bin/sh\necho 1.0\n")
        path.chmod(0o755)
    keys = [native._key(str(compiler), ()), native._key(str(compiler), ("-fopenmp",))]
    keys.append(native._key(str(other), ()))
    compiler.write_text("#!/bin/sh\necho 2.0\n")
    keys.append(native._key(str(compiler), ()))
    monkeypatch.setattr(native, "_processor", lambda: "another")
    keys.append(native._key(str(compiler), ()))
    source = tmp_path / "stream.cpp"
    source.write_text("int other;")
    for name in ("_SOURCE", "_HEADER"):
        monkeypatch.setattr(native, name, source)
        keys.append(native._key(str(compiler), ()))
    assert len(set(keys)) == len(keys)


def test_without_a_private_folder_torch_runs_the_streams_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if shutil.which("c++") is None:
        pytest.skip("no compiler here")
    (tmp_path / "otter").mkdir()
    (tmp_path / "otter").chmod(0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("OTTER_NATIVE", raising=False)
    loaded = native._load_once.__wrapped__()
    assert loaded[0] is None and "can be written by other users" in loaded[1]
    told = capsys.readouterr().err
    assert "native code is not used" in told and "XDG_CACHE_HOME" in told
    assert list((tmp_path / "otter").iterdir()) == []


def test_the_library_is_a_real_one(folder: Path, compiler: Compiler) -> None:
    assert isinstance(load_compiled(folder, KEY, compiler), ctypes.CDLL)


@pytest.mark.skipif(native.load_native() is None, reason="no compiler here")
@pytest.mark.parametrize("changed", ["_ABI_VERSION", "WEIGHTS_PER_LAYER", "POINTERS_OF_HEADS"])
def test_a_library_with_other_structures_is_not_used(
    monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    native._load_once.cache_clear()
    monkeypatch.setattr(native_abi, changed, getattr(native_abi, changed) + 1)
    try:
        assert native.load_native() is None
        assert "version and sizes" in native.native_refusal()
    finally:
        native._load_once.cache_clear()
