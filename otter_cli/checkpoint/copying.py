"""Copying a file and hashing it in one reading, each at its own speed."""

import hashlib
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO
from pathlib import Path

from otter_cli.core.digests import CHUNK_BYTES, Advance


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
