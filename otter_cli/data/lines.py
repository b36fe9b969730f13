"""Lines of text files, plain or `.gz`, with their numbers."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from otter_cli.core.errors import OtterError, from_os_error

_BYTE_ORDER_MARK = "\ufeff"


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbers (from 1) and lines, endings kept; OtterError unless it is non-empty UTF-8.

    A line ends with LF, CR LF or a lone CR, as in Python's universal newlines.
    """
    number = 0
    try:
        with _open(path) as file:
            # Bytes split at these three alone; a text would split at U+2028 as well.
            lines = (line for part in file for line in part.splitlines(keepends=True))
            for number, line in enumerate(lines, 1):
                text = _decoded(line, path, number)
                yield number, text.removeprefix(_BYTE_ORDER_MARK) if number == 1 else text
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise OtterError(
            f"{path}: damaged gzip file: {error}", hint="fetch or write the file again"
        ) from error
    except IsADirectoryError as error:
        raise OtterError(f"{path} is a folder, not a file", hint="name a file in it") from error
    except OSError as error:
        raise from_os_error(error, f"read {path}") from error
    if number == 0:
        raise OtterError(f"{path}: the file is empty (0 bytes)", hint="fetch or write it again")


def format_of(path: Path) -> str:
    """The file's kind by its name, `.gz` aside: "jsonl", "csv", "txt" ..."""
    name = path.name.lower().removesuffix(".gz")
    return name.rpartition(".")[2] if "." in name else ""


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else open(path, "rb")


def _decoded(line: bytes, path: Path, number: int) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = line[error.start]
        raise OtterError(
            f"{path}, line {number}: byte {error.start + 1} (0x{byte:02x}) is not UTF-8",
            hint="convert the file, e.g. `iconv -f latin1 -t utf-8 FILE`",
        ) from error
