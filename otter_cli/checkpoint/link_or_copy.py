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
    """Copy content, mode and times. Returns the content's SHA-256."""
    with open(source, "rb", buffering=0) as reader, open(target, "xb", buffering=0) as writer:
        digest = _copy_content(reader, writer, advance)
    shutil.copystat(source, target)
    return digest


def _copy_content(reader: FileIO, writer: FileIO, advance: Advance | None) -> str:
    """A second thread hashes each chunk while this one writes it and reads the next."""
    digest = hashlib.sha256()
    # Most files of a base are small, and clearing full buffers for them takes time.
    size = min(CHUNK_BYTES, os.fstat(reader.fileno()).st_size) or 1
    buffers = [memoryview(bytearray(size)) for _ in range(2)]
    hashing: Future[None] | None = None
    with ThreadPoolExecutor(1) as pool:
        while count := reader.readinto(buffers[0]):
            # The previous chunk must be hashed before its buffer is read into again.
            if hashing is not None:
                hashing.result()
            chunk = buffers[0][:count]
            hashing = pool.submit(digest.update, chunk)
            while chunk:  # an unbuffered write may take a part only, as on a nearly full disk
                chunk = chunk[writer.write(chunk) :]
            if advance is not None:
                advance(count)
            buffers.reverse()
    return digest.hexdigest()


PlacementMode = Literal["link", "copy"]
DigestFunction = Callable[[Path, Advance | None], str]

_FICLONE = 0x40049409  # linux/fs.h: share the blocks of another file
# Errors of file systems that cannot link here: another device, not supported, not allowed.
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
    """Place `files`, relative paths, in `target_root`, and return the digest of each.

    "link" shares weights: by a hard link, or else a reflink, or else a copy. Other files are
    copied, because an edit would change the source through a hard link. "copy" copies weights too.
    Links in the source are followed, and must not lead out of it (or out of its hub cache).
    `advance` receives bytes. `digest` computes the digests of linked files, by default with a
    cache.
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
    """The files that are hard links to the source, so that a change in one changes both."""
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
    """Share the source's blocks until either file changes (btrfs, xfs)."""
    with open(source, "rb") as reader, open(target, "xb") as writer:
        try:
            fcntl.ioctl(writer, _FICLONE, reader.fileno())
        except OSError as error:
            target.unlink()
            return _is_unsupported(error)
    shutil.copystat(source, target)
    return True


def _is_unsupported(error: OSError) -> bool:
    """False where the next way should be tried. Raises other errors."""
    if error.errno in _UNSUPPORTED_ERRNOS:
        return False
    raise error
