"""Folders and files that no other user can write to.

Caches hold digests and compiled code that otter trusts, so they are read only where the folder and
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
    """Another user owns it or may write to it, or it is a link."""


def otter_cache_folder() -> Path:
    """Where otter keeps what it can make again. Raises RuntimeError where a user has no home."""
    root = os.environ.get("XDG_CACHE_HOME")
    return Path(root or Path.home() / ".cache") / "otter"


@contextmanager
def private_folder(path: Path) -> Iterator[int]:
    """Yields a descriptor of the folder, which is made where it does not exist. Names opened
    relative to it lie in this folder, even when something else takes its place meanwhile.

    Raises NotPrivate, or OSError where it can neither be made nor opened.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
    except FileExistsError as error:
        reason = os.strerror(errno.ENOTDIR)
        raise NotADirectoryError(errno.ENOTDIR, reason, error.filename) from error
    if path.is_symlink():
        raise NotPrivate(f"{path} is a link, and what it points to may be anybody's: remove it")
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        status = os.fstat(folder)
        if why := _reason_not_private(status):
            raise NotPrivate(
                f"{path} {why}: remove it, or set XDG_CACHE_HOME to a folder of your own"
            )
        if stat.S_IMODE(status.st_mode) != 0o700:
            os.fchmod(folder, 0o700)
        yield folder
    finally:
        os.close(folder)


def path_of_descriptor(folder: int, path: Path) -> Path:
    """The folder of that descriptor as a path: `path` itself may be another folder by now."""
    by_descriptor = Path(f"/proc/self/fd/{folder}")
    return by_descriptor if by_descriptor.exists() else path


@contextmanager
def private_file(folder: int, name: str) -> Iterator[int]:
    """Yields a descriptor of a regular file in a private folder. Raises NotPrivate or OSError."""
    # A FIFO would block without O_NONBLOCK; a link raises.
    file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    try:
        status = os.fstat(file)
        why = _reason_not_private(status)
        if not stat.S_ISREG(status.st_mode):
            why = "is no regular file"
        if why:
            raise NotPrivate(f"{name} {why}")
        yield file
    finally:
        os.close(file)


def _reason_not_private(status: os.stat_result) -> str:
    """Empty where the file or folder is this user's alone."""
    if status.st_uid != os.geteuid():
        return "belongs to another user"
    return "can be written by other users" if status.st_mode & _WRITABLE_BY_OTHERS else ""
