"""JSON Lines files, plain or gzipped: one JSON object on each line.

Every record is flushed at once, so a killed run loses at most its last line. The writer removes a
half-written last line before it appends.
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Self, cast

from otter_cli.core.errors import OtterError, from_os_error

JsonRecord = dict[str, Any]


class JsonLinesWriter:
    """Appends records to `path`. Raises OtterError for errors of the operating system."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._file: BinaryIO = open(self.path, "ab+")  # noqa: SIM115
        except OSError as error:
            raise from_os_error(error, f"write {self.path}") from error
        self._mend_tail()

    def append(self, record: JsonRecord) -> None:
        line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise from_os_error(error, f"write {self.path}") from error

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _mend_tail(self) -> None:
        """Remove the half line that a killed run leaves, or the next record would join it."""
        self._file.seek(0)
        end, line = 0, b"\n"
        for line in self._file:
            end += len(line)
        if line.endswith(b"\n"):
            return
        if _parse(line) is None:
            self._file.truncate(end - len(line))
        else:
            self._file.write(b"\n")


def numbered_jsonlines(
    path: str | Path, *, torn_ok: bool = True
) -> Iterator[tuple[int, JsonRecord]]:
    """Line numbers (from 1) and records of `path`, plain or `.gz`. Blank lines are skipped.

    With `torn_ok`, a last line that has no newline and is not JSON is skipped: a killed writer
    leaves it. Raises OtterError for other lines that are not JSON objects.
    """
    try:
        with _open(Path(path)) as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                record = _parse(line)
                if record is not None:
                    yield number, record
                elif line.endswith(b"\n") or not torn_ok:
                    raise OtterError(
                        f"{path}, line {number}: not a JSON object",
                        hint='each line must be one object, such as {"text": "..."}',
                    )
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise OtterError(
            f"{path}: damaged gzip file: {error}", hint="fetch or write the file again"
        ) from error
    except OSError as error:
        raise from_os_error(error, f"read {path}") from error


def read_jsonlines(path: str | Path, *, torn_ok: bool = True) -> Iterator[JsonRecord]:
    """The records of `path`, see numbered_jsonlines."""
    for _, record in numbered_jsonlines(path, torn_ok=torn_ok):
        yield record


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else open(path, "rb")


def _parse(line: bytes) -> JsonRecord | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
