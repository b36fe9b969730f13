"""Files and folders that appear whole or not at all, whenever the process dies."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from otter_cli.core.errors import OtterError, from_os_error
from otter_cli.core.lock import writer_lock


@contextmanager
def staged_file(path: str | Path) -> Iterator[BinaryIO]:
    """Yields a file that replaces `path` in one step when the block succeeds.

    The old content stays until the new is on disk; a block that raises leaves it untouched.
    OtterError as for staged_folder.
    """
    path = Path(path).absolute()
    staging = path.with_name(f".{path.name}.otter-staging")
    try:
        with writer_lock(path):
            # Holding the lock, whatever bears this name was left by a killed run.
            _remove(staging)
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
    """Replace `path` by `data` in one step, see staged_file."""
    with staged_file(path) as file:
        file.write(data)


def write_text(path: str | Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any) -> None:
    """Indented JSON; NaN and infinity, which JSON lacks, raise ValueError."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def staged_folder(
    target: str | Path, *, sources: Iterable[str | Path] = (), overwrite: bool = False
) -> Iterator[Path]:
    """Yields an empty folder beside `target` that becomes `target` when the block succeeds.

    `sources` are folders that the block reads: none may lie in `target`, nor `target` in one.

    A block that raises leaves nothing; what a killed process leaves is hidden, and removed by
    the next one. OtterError when `target` exists (unless `overwrite`), when another writer is at
    it, and for whatever the operating system refuses.
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
            # Once more, now that nobody else can be finishing the same target.
            _refuse_existing(target, overwrite)
            try:
                staging.mkdir()
                yield staging
                sync_tree(staging)
                _put_in_place(staging, target, previous, overwrite)
            finally:
                _remove(staging)
    except OSError as error:
        raise from_os_error(error, f"write {target}") from error


def refuse_overlap(source: Path, target: Path) -> None:
    """Raises OtterError where writing `target` would write into `source`, or replace it."""
    read, written = source.resolve(), target.resolve()
    if written == read:
        what = "is the folder that is read"
    elif written.is_relative_to(read):
        what = f"lies inside {source}, which is only read"
    elif read.is_relative_to(written):
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


def sync_tree(root: Path) -> None:
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
    # POSIX cannot replace a full folder by a rename. Dying between these two leaves `previous`,
    # which the next writer puts back.
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
