"""One writer per target: a lock that the operating system frees when its holder dies."""

import fcntl
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from otter_cli.core.errors import OtterError

_SUFFIX = ".otter-lock"


@contextmanager
def writer_lock(target: Path) -> Iterator[None]:
    """Hold `.<name>.otter-lock` beside `target`; OtterError naming it when another process does."""
    path = target.with_name(f".{target.name}.otter-lock")
    handle = _acquire(path)
    _sweep(path)
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
            _lock(handle)
        except BlockingIOError as error:
            os.close(handle)
            raise OtterError(
                f"another otter is writing here: {path} is locked{_holder(path)}",
                hint="wait until it ends, or choose another output folder",
            ) from error
        if _still_there(handle, path):
            _sign(handle)
            return handle
        os.close(handle)


def _sign(handle: int) -> None:
    """Whoever finds the file sees which process it is of."""
    with suppress(OSError):  # a full disk
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} of {platform.node()}\n".encode())


def _lock(handle: int) -> None:
    """Waits a moment: whoever sweeps an old lock away holds it for no longer."""
    for _ in range(3):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(0.03)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _holder(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            text = file.read(200).decode("utf-8", "replace").strip()
    except OSError:
        return ""
    return f" ({text})" if text.isprintable() and text else ""


def _sweep(ours: Path) -> None:
    """Remove the locks beside ours that killed writers left: nobody holds them."""
    for path in ours.parent.glob(f".*{_SUFFIX}"):
        if path == ours:
            continue
        try:
            handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            continue  # it is gone already, or another user's
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _still_there(handle, path):
                path.unlink(missing_ok=True)
        except OSError:
            continue  # somebody holds it
        finally:
            os.close(handle)


def _still_there(handle: int, path: Path) -> bool:
    """Whether `path` is still the file that was locked, and not one that its holder removed."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
