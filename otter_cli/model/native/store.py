"""Compiled code on disk, kept between runs in a folder that only this user can write.

An entry is named `stream-KEY-DIGEST.so`: the key says what it was made of, the digest is that of
the file's bytes. Code whose bytes have another digest is removed, never loaded.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from otter_cli.core.private import inside, private_file, private_folder

_STAGING = ".stream-"
_POLL_SECONDS = 0.05

# Compiles to the path that it is given.
Compile = Callable[[Path], None]


def load_compiled(
    folder: Path, key: str, compile_to: Compile, *, patience: float = 150.0
) -> ctypes.CDLL:
    """The code of `key`, compiled unless it is kept. Processes that want it at once wait for the
    first, for `patience` seconds. Raises OSError where the folder is not private or the code cannot
    be kept, and what `compile_to` raises."""
    with private_folder(folder) as kept:
        library = _load(folder, kept, key)
        if library is not None:
            return library
        with _locked(kept, patience):
            # Another process may have compiled it while this one waited.
            library = _load(folder, kept, key)
            if library is None:
                _sweep(kept, key)
                _compile(folder, kept, key, compile_to)
                library = _load(folder, kept, key)
    if library is None:
        raise OSError(f"{folder}: compiled code reads otherwise than it was written")
    return library


def _load(folder: Path, kept: int, key: str) -> ctypes.CDLL | None:
    for name in sorted(os.listdir(kept)):
        if name.startswith(f"stream-{key}-") and name.endswith(".so"):
            library = _load_file(folder, kept, name)
            if library is not None:
                return library
    return None


def _load_file(folder: Path, kept: int, name: str) -> ctypes.CDLL | None:
    """None where the file is not private, or its bytes are not those that were compiled."""
    try:
        with private_file(kept, name) as file:
            if name.rpartition("-")[2] != f"{_digest(file)}.so":
                return None
            return ctypes.CDLL(str(inside(kept, folder) / name))
    except OSError:
        return None


def _digest(file: int) -> str:
    with open(file, "rb", closefd=False) as reader:
        return hashlib.file_digest(reader, "sha256").hexdigest()


@contextmanager
def _locked(kept: int, patience: float) -> Iterator[None]:
    """One compilation at a time; the operating system frees the lock of a process that dies."""
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(kept, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise TimeoutError(f"another process compiles for {patience:.0f} s") from None
            time.sleep(_POLL_SECONDS)
        else:
            break
    try:
        yield
    finally:
        fcntl.flock(kept, fcntl.LOCK_UN)


def _sweep(kept: int, key: str) -> None:
    """Removes what killed compilations left, and entries of this key, which did not load."""
    for name in os.listdir(kept):
        if name.startswith((_STAGING, f"stream-{key}-")):
            if stat.S_ISDIR(os.lstat(name, dir_fd=kept).st_mode):
                os.rmdir(name, dir_fd=kept)
            else:
                os.unlink(name, dir_fd=kept)


def _compile(folder: Path, kept: int, key: str, compile_to: Compile) -> None:
    # A name of its own: the compiler of a killed process may still write to another.
    staging = f"{_STAGING}{os.getpid()}-{secrets.token_hex(4)}"
    try:
        compile_to(folder / staging)
        os.chmod(staging, 0o700, dir_fd=kept)  # whatever the user's umask is
        with private_file(kept, staging) as file:
            os.fsync(file)
            digest = _digest(file)
        os.rename(staging, f"stream-{key}-{digest}.so", src_dir_fd=kept, dst_dir_fd=kept)
        os.fsync(kept)
    finally:
        if staging in os.listdir(kept):
            os.unlink(staging, dir_fd=kept)
