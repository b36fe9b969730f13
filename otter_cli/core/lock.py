"""One writer per target: a lock that the operating system frees when its holder dies."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from otter_cli.core.errors import OtterError


@contextmanager
def writer_lock(target: Path) -> Iterator[None]:
    """Hold `.<name>.otter-lock` beside `target`; OtterError naming it when another process does."""
    path = target.with_name(f".{target.name}.otter-lock")
    handle = _acquire(path)
    try:
        yield
    finally:
        # Removed while still held: whoever opened the old file finds it gone and starts over.
        path.unlink(missing_ok=True)
        os.close(handle)


def _acquire(path: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            raise OtterError(
                f"another otter is writing here: {path} is locked",
                hint="wait until it ends, or choose another output folder",
            ) from error
        if _still_there(handle, path):
            return handle
        os.close(handle)


def _still_there(handle: int, path: Path) -> bool:
    """Whether `path` is still the file that was locked, and not one that its holder removed."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
