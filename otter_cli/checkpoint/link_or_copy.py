"""A base's files placed in another folder, byte for byte, with their digests.

Weights are hard-linked, or else reflinked, or else copied. All other files are copied, because
somebody may edit them. A copy is hashed while it is written.
"""

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import Literal

from otter_cli.checkpoint.folder import is_weights
from otter_cli.checkpoint.safetensors_writer import FileDigest
from otter_cli.core.console import Advance
from otter_cli.core.digests import CHUNK_BYTES, DigestCache
from otter_cli.core.errors import from_os_error
from otter_cli.core.strict_files import resolve_inside


def copy_file(source: Path, target: Path, advance: Advance | None = None) -> str:
    """Copy content, mode and times; returns the content's SHA-256."""
    with open(source, "rb", buffering=0) as reader, open(target, "xb", buffering=0) as writer:
        digest = _copy_content(reader, writer, advance)
    shutil.copystat(source, target)
    return digest


def _copy_content(reader: FileIO, writer: FileIO, advance: Advance | None) -> str:
    """Hash each chunk in a second thread while the first writes it and reads the next."""
    digest = hashlib.sha256()
    # Most files of a base are small: what they need not is not cleared for them either.
    size = min(CHUNK_BYTES, os.fstat(reader.fileno()).st_size) or 1
    buffers = [memoryview(bytearray(size)) for _ in range(2)]
    hashing: Future[None] | None = None
    with ThreadPoolExecutor(1) as pool:
        while count := reader.readinto(buffers[0]):
            # The chunk before is done with here, so its buffer is free to be read into next.
            if hashing is not None:
                hashing.result()
            chunk = buffers[0][:count]
            hashing = pool.submit(digest.update, chunk)
            _write_all(writer, chunk)
            if advance is not None:
                advance(count)
            buffers.reverse()
    return digest.hexdigest()


def _write_all(writer: FileIO, chunk: memoryview) -> None:
    # An unbuffered write may take less than it is given, as on a disk that is nearly full.
    while chunk:
        chunk = chunk[writer.write(chunk) :]


PlacementMode = Literal["link", "copy"]
DigestFunction = Callable[[Path, Advance | None], str]

_FICLONE = 0x40049409  # linux/fs.h: share the blocks of another file
# What file systems say that cannot do it here: not the same device, not supported, not allowed.
_UNSUPPORTED_ERRNOS = {
    errno.EXDEV, errno.EOPNOTSUPP, errno.ENOTTY, errno.EPERM, errno.EMLINK, errno.EINVAL,
    errno.ENOSYS,
}  # fmt: skip


def place_files(
    source_root: str | Path,
    files: Iterable[str],
    target_root: str | Path,
    *,
    mode: PlacementMode = "link",
    advance: Advance | None = None,
    digest: DigestFunction | None = None,
) -> dict[str, FileDigest]:
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
            records[file] = FileDigest(bytes=target.stat().st_size, sha256=sha256)
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
        return _is_unsupported(error)
    return True


def _reflink(source: Path, target: Path) -> bool:
    """Share the source's blocks until either is changed (btrfs, xfs)."""
    with open(source, "rb") as reader, open(target, "xb") as writer:
        try:
            fcntl.ioctl(writer, _FICLONE, reader.fileno())
        except OSError as error:
            target.unlink()
            return _is_unsupported(error)
    shutil.copystat(source, target)
    return True


def _is_unsupported(error: OSError) -> bool:
    """False when the next way is to be tried; anything else is a real failure."""
    if error.errno in _UNSUPPORTED_ERRNOS:
        return False
    raise error
