"""Files and folders that appear whole or not at all, whenever the process dies.

A writer stages its output beside the target, waits until it is on disk, and renames it. A lock
allows one writer for each target. The operating system frees the lock when its holder dies.
"""

import fcntl
import json
import os
import platform
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from otter_cli.core.errors import OtterError, from_os_error

_LOCK_SUFFIX = ".otter-lock"


@contextmanager
def writer_lock(target: Path) -> Iterator[None]:
    """Hold `.NAME.otter-lock` beside `target`. Raises OtterError where another process holds it."""
    path = target.with_name(f".{target.name}{_LOCK_SUFFIX}")
    handle = _acquire(path)
    _remove_stale_locks(path)
    try:
        yield
    finally:
        # Removed while it is held, so a process that opened the old file finds it gone and retries.
        path.unlink(missing_ok=True)
        os.close(handle)


def _acquire(path: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            _lock_with_retries(handle)
        except BlockingIOError as error:
            os.close(handle)
            raise OtterError(
                f"another otter is writing here: {path} is locked{_holder(path)}",
                hint="wait until it ends, or choose another output folder",
            ) from error
        if _still_there(handle, path):
            _write_holder(handle)
            return handle
        os.close(handle)


def _write_holder(handle: int) -> None:
    """Write the process into the file, for the message of another one."""
    with suppress(OSError):  # a full disk
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} of {platform.node()}\n".encode())


def _lock_with_retries(handle: int) -> None:
    """Retries for a moment: a process that removes stale locks holds each for an instant."""
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


def _remove_stale_locks(ours: Path) -> None:
    """Remove locks beside ours that no process holds: killed writers left them."""
    for path in ours.parent.glob(f".*{_LOCK_SUFFIX}"):
        if path == ours:
            continue
        try:
            handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            continue  # it is gone, or belongs to another user
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _still_there(handle, path):
                path.unlink(missing_ok=True)
        except OSError:
            continue  # another process holds it
        finally:
            os.close(handle)


def _still_there(handle: int, path: Path) -> bool:
    """Whether `path` is still the locked file, and its holder has not removed it."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def staged_file(path: str | Path) -> Iterator[BinaryIO]:
    """Yields a file that replaces `path` in one step when the block succeeds.

    The old content stays until the new content is on disk, and where the block raises. Raises
    OtterError as staged_folder does.
    """
    path = Path(path).absolute()
    staging = path.with_name(f".{path.name}.otter-staging")
    try:
        with writer_lock(path):
            _remove(staging)  # only a killed run can have left it, because the lock is held
            try:
                with open(staging, "xb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                staging.rename(path)
                sync_path(path.parent)
            finally:
                _remove(staging)
    except OSError as error:
        raise from_os_error(error, f"write {path}") from error


def write_bytes(path: str | Path, data: bytes) -> None:
    """Replace the content of `path` in one step, see staged_file."""
    with staged_file(path) as file:
        file.write(data)


def write_text(path: str | Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON. Raises ValueError for NaN and infinity, which JSON lacks."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def staged_folder(
    target: str | Path, *, sources: Iterable[str | Path] = (), overwrite: bool = False
) -> Iterator[Path]:
    """Yields an empty folder beside `target` that becomes `target` when the block succeeds.

    `sources` are folders that the block reads. Neither may lie in `target`, nor `target` in them.
    A block that raises leaves nothing. A killed process leaves hidden files, which the next writer
    removes. Raises OtterError where `target` exists (unless `overwrite`), where another process
    writes it, and for errors of the operating system.
    """
    target = Path(target).absolute()
    for source in sources:
        refuse_overlap(Path(source), target)
    _refuse_existing(target, overwrite)
    staging = target.with_name(f".{target.name}.otter-staging")
    previous = target.with_name(f".{target.name}.otter-previous")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with writer_lock(target):
            _clear_leftovers(target, staging, previous)
            _refuse_existing(target, overwrite)  # again, now that no other process can create it
            try:
                staging.mkdir()
                yield staging
                _sync_tree(staging)
                _put_in_place(staging, target, previous, overwrite)
            finally:
                _remove(staging)
    except OSError as error:
        raise from_os_error(error, f"write {target}") from error


def refuse_overlap(source: Path, target: Path) -> None:
    """Raises OtterError where writing `target` would write into `source` or replace it."""
    real_source, real_target = source.resolve(), target.resolve()
    if real_target == real_source:
        what = "is the folder that is read"
    elif real_target.is_relative_to(real_source):
        what = f"lies inside {source}, which is only read"
    elif real_source.is_relative_to(real_target):
        what = f"holds {source}, which is only read"
    else:
        return
    raise OtterError(f"{target} {what}", hint="choose an output folder beside it")


def sync_path(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_tree(root: Path) -> None:
    for folder, _, files in os.walk(root):
        for name in files:
            path = Path(folder, name)
            if not path.is_symlink():
                sync_path(path)
        sync_path(Path(folder))


def _refuse_existing(target: Path, overwrite: bool) -> None:
    if os.path.lexists(target) and not overwrite:
        raise OtterError(
            f"{target} exists already", hint="choose another output folder, or remove this one"
        )


def _put_in_place(staging: Path, target: Path, previous: Path, overwrite: bool) -> None:
    # POSIX cannot replace a full folder by a rename. A process that dies between the two renames
    # leaves `previous`, which the next writer puts back.
    if overwrite and os.path.lexists(target):
        target.rename(previous)
    staging.rename(target)
    sync_path(target.parent)
    _remove(previous)


def _clear_leftovers(target: Path, staging: Path, previous: Path) -> None:
    if os.path.lexists(previous) and not os.path.lexists(target):
        previous.rename(target)
    _remove(previous)
    _remove(staging)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()
