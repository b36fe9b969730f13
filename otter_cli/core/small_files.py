"""Reading a small file whole: a regular file of sane size, or an OtterError that names it.

Every text that otter reads into memory comes through here: a pipe would hang a reader, a device or
a sparse file would fill the memory.
"""

import os
from pathlib import Path
from stat import S_ISREG

from otter_cli.core.errors import OtterError, from_os_error

SMALL_BYTES = 100_000_000
# A file that otter wrote itself: samples of a long run, the log of a long training.
OWN_BYTES = 2_000_000_000

_CHUNK = 1 << 16
_NO_WAITING = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def read_small(path: str | Path, *, limit: int = SMALL_BYTES, where: str = "") -> bytes:
    """The content of a regular file of at most `limit` bytes. Raises OtterError for any other, and
    for what the operating system refuses. `where` is what errors call it, by default its path."""
    where = where or str(path)
    try:
        handle = os.open(path, _NO_WAITING)
        with open(handle, "rb") as file:
            status = os.fstat(handle)
            if not S_ISREG(status.st_mode):
                raise OtterError(f"{where}: not a regular file", hint="give a plain file")
            if status.st_size > limit:
                raise OtterError(
                    f"{where}: {status.st_size:,} bytes is over the limit of {limit:,}",
                    hint="the file is damaged or not what its name says",
                )
            data = file.read(status.st_size + 1)
            # A file of /proc has size 0 and content, another one may be growing.
            while len(data) <= limit and (more := file.read(_CHUNK)):
                data += more
    except OSError as error:
        raise from_os_error(error, f"read {where}") from error
    if len(data) > limit:
        raise OtterError(
            f"{where}: over the limit of {limit:,} bytes", hint="the file is not what its name says"
        )
    return data


def read_small_text(path: str | Path, *, limit: int = SMALL_BYTES) -> str:
    """The same as UTF-8 text."""
    try:
        return read_small(path, limit=limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise OtterError(
            f"{path}: byte {error.start + 1} is not UTF-8", hint="save the file as UTF-8 text"
        ) from error
