"""Folders and files that no other user can write to.

Caches hold digests and compiled code that otter trusts. So they are used only where the folder and
the file belong to this user alone.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class NotPrivate(OSError):
    """Another user owns the file or folder or may write to it, or it is a link."""


def otter_cache_folder() -> Path:
    """The folder of files that otter can make again. Raises RuntimeError without a home folder."""
    root = os.environ.get("XDG_CACHE_HOME")
    return Path(root or Path.home() / ".cache") / "otter"


@contextmanager
def private_folder(path: Path) -> Iterator[int]:
    """Yields a descriptor of the folder, which is created where it does not exist. Names opened
    relative to the descriptor lie in this folder, even if another one takes its path meanwhile.

    Raises NotPrivate, or OSError where the folder can be neither created nor opened.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
    except FileExistsError as error:
        reason = os.strerror(errno.ENOTDIR)
        raise NotADirectoryError(errno.ENOTDIR, reason, error.filename) from error
    if path.is_symlink():
        raise NotPrivate(f"{path} is a link, which may lead to a folder of another user: remove it")
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        status = os.fstat(folder)
        if reason := _reason_not_private(status):
            raise NotPrivate(
                f"{path} {reason}: remove it, or set XDG_CACHE_HOME to a folder of your own"
            )
        if stat.S_IMODE(status.st_mode) != 0o700:
            os.fchmod(folder, 0o700)
        yield folder
    finally:
        os.close(folder)


def path_of_descriptor(folder: int, path: Path) -> Path:
    """The path of an open folder. `path` itself may be another folder by now."""
    by_descriptor = Path(f"/proc/self/fd/{folder}")
    return by_descriptor if by_descriptor.exists() else path


@contextmanager
def private_file(folder: int, name: str) -> Iterator[int]:
    """Yields a descriptor of a regular file in a private folder. Raises NotPrivate or OSError."""
    # Without O_NONBLOCK a FIFO would block. O_NOFOLLOW raises for a link.
    file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise NotPrivate(f"{name} is no regular file")
        if reason := _reason_not_private(status):
            raise NotPrivate(f"{name} {reason}")
        yield file
    finally:
        os.close(file)


def _reason_not_private(status: os.stat_result) -> str:
    """Empty where the file or folder belongs to this user alone."""
    if status.st_uid != os.geteuid():
        return "belongs to another user"
    return "can be written by other users" if status.st_mode & _WRITABLE_BY_OTHERS else ""
