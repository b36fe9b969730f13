"""Putting a base's files into another folder, byte for byte, with their digests."""

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from otter_cli.checkpoint.copying import copy_file
from otter_cli.checkpoint.digest_cache import DigestCache
from otter_cli.checkpoint.links import resolve_inside
from otter_cli.checkpoint.listing import is_weights
from otter_cli.checkpoint.writer import FileRecord
from otter_cli.core.digests import Advance
from otter_cli.core.errors import from_os_error

Mode = Literal["link", "copy"]
Digest = Callable[[Path, Advance | None], str]

_FICLONE = 0x40049409  # linux/fs.h: share the blocks of another file
# What file systems say that cannot do it here: not the same device, not supported, not allowed.
_NOT_HERE = {
    errno.EXDEV, errno.EOPNOTSUPP, errno.ENOTTY, errno.EPERM, errno.EMLINK, errno.EINVAL,
    errno.ENOSYS,
}  # fmt: skip


def place_files(
    source_root: str | Path,
    files: Iterable[str],
    target_root: str | Path,
    *,
    mode: Mode = "link",
    advance: Advance | None = None,
    digest: Digest | None = None,
) -> dict[str, FileRecord]:
    """Place `files`, relative paths, and return the record of each.

    "link" shares weights: a hard link, or else a reflink, or else a copy. Any other file is copied,
    for somebody may edit it, which would change the source through a hard link. "copy" copies
    weights too, and takes the digest on the way. Links in the source are followed, and must stay
    in it (or in its hub cache). `advance` is told bytes; `digest` is asked for linked files, by
    default a cache.
    """
    source_root, target_root = Path(source_root), Path(target_root)
    digest = digest or DigestCache().sha256
    records = {}
    for file in files:
        source, target = resolve_inside(source_root, file), target_root / file
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shared = mode == "link" and is_weights(file)
            if shared and (_hard_link(source, target) or _reflink(source, target)):
                sha256 = digest(source, advance)
            else:
                sha256 = copy_file(source, target, advance)
            records[file] = FileRecord(bytes=target.stat().st_size, sha256=sha256)
        except OSError as error:
            raise from_os_error(error, f"place {source} as {target}") from error
    return records


def hard_linked(source_root: Path, files: Iterable[str], target_root: Path) -> list[str]:
    """Those of the placed files that are the source's own: a change in one is a change in both."""
    return [
        file
        for file in files
        if os.path.lexists(source_root / file) and (target_root / file).samefile(source_root / file)
    ]


def _hard_link(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError as error:
        return _not_here(error)
    return True


def _reflink(source: Path, target: Path) -> bool:
    """Share the source's blocks until either is changed (btrfs, xfs)."""
    with open(source, "rb") as reader, open(target, "xb") as writer:
        try:
            fcntl.ioctl(writer, _FICLONE, reader.fileno())
        except OSError as error:
            target.unlink()
            return _not_here(error)
    shutil.copystat(source, target)
    return True


def _not_here(error: OSError) -> bool:
    """False when the next way is to be tried; anything else is a real failure."""
    if error.errno in _NOT_HERE:
        return False
    raise error
