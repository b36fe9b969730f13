"""Data files and hub datasets as rows with named columns.

Reads jsonl, csv, tsv (each also as .gz), txt, parquet and datasets of the hub. Every error names
the file and the line. Nothing here needs torch."""

from __future__ import annotations

import csv
import gzip
import json
import math
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar, cast

from otter_cli.core.errors import OtterError, did_you_mean, from_os_error
from otter_cli.core.library_errors import translate_library_errors

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


def find_data(name: str, beside: Path | None = None) -> Path:
    """The file of this name, with `$NAME` and `~` expanded, beside the recipe or in the working
    folder. Raises OtterError for an unset variable and for a missing file.
    """
    path = Path(expand_variables(name)).expanduser()
    candidates = [folder / path for folder in ([beside] if beside else []) + [Path()]]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    tried = " and ".join(dict.fromkeys(map(str, candidates)))
    raise OtterError(f"data file {name!r} not found; looked for {tried}", hint="check the path")


def expand_variables(text: str) -> str:
    """Replaces `$NAME` and `${NAME}`. Raises OtterError for a variable that is not set."""
    return _VARIABLE.sub(_variable_value, text)


def _variable_value(match: re.Match[str]) -> str:
    variable = match[1] or match[2]
    if variable not in os.environ:
        raise OtterError(
            f"{match.string!r}: ${variable} is not set",
            hint=f"set it, e.g. `export {variable}=FOLDER`",
        )
    return os.environ[variable]


_BYTE_ORDER_MARK = "\ufeff"


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers (from 1) and lines with their endings: LF, CR LF or a lone CR, as in Python's
    universal newlines. Raises OtterError unless the file is UTF-8 and not empty.
    """
    number = 0
    try:
        with _open_binary(path) as file:
            # bytes.splitlines splits at these three alone, str.splitlines at U+2028 as well.
            lines = (line for part in file for line in part.splitlines(keepends=True))
            for number, line in enumerate(lines, 1):
                text = _decode_line(line, path, number)
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
    """The format by the file's name without `.gz`: "jsonl", "csv", "txt" ..."""
    name = path.name.lower().removesuffix(".gz")
    return name.rpartition(".")[2] if "." in name else ""


def _open_binary(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else open(path, "rb")


def _decode_line(line: bytes, path: Path, number: int) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = line[error.start]
        raise OtterError(
            f"{path}, line {number}: byte {error.start + 1} (0x{byte:02x}) is not UTF-8",
            hint="convert the file, e.g. `iconv -f latin1 -t utf-8 FILE`",
        ) from error


Row = TypeVar("Row")


class RowReader(Protocol):
    """A table that is not simply a file. `str()` of it says where its rows come from."""

    def records(self) -> Iterator[Record]: ...


TableLike = Path | RowReader


@dataclass(frozen=True)
class Record:
    """One row of a table: its values by column, and where it is. `unit` is what `line` counts: the
    lines of a text, or the rows of a table."""

    path: TableLike
    line: int
    values: Mapping[str, Any]
    unit: str = "line"

    def value(self, column: str) -> Any:
        """The value of a column. `a.b` reads key `b` of an object in column `a`, `a.0` the first
        item of a list; a column with the whole name goes first. Raises OtterError."""
        if column in self.values:
            return self.values[column]
        outer, dot, inner = column.partition(".")
        nested = self.values.get(outer)
        if isinstance(nested, list):
            nested = {str(i): value for i, value in enumerate(nested)}
        if dot and isinstance(nested, Mapping):
            return replace(self, values=nested).value(inner)
        raise self.error(
            f"no column {column!r}",
            did_you_mean(column, self.values)
            + f"its columns: {', '.join(map(repr, self.values)) or 'none'}",
        )

    def text(self, column: str) -> str:
        """A text with more than white space. Raises OtterError for anything else."""
        value = self.value(column)
        if not isinstance(value, str):
            raise self.error(f"{column!r} is {_type_name(value)}, not text", "name another column")
        if not value.strip():
            raise self.error(f"{column!r} is empty", "remove the row, or fill it")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            # JSON's \ud800 escapes can spell half a character, and tokenizers fail at it.
            hint = "write the file again as UTF-8, without \\u escapes"
            raise self.error(f"{column!r} holds half a surrogate pair", hint) from error
        return value

    def number(self, column: str, low: float = -math.inf, high: float = math.inf) -> float:
        """A number from `low` to `high`, also one spelled as text. Raises OtterError."""
        value = self.value(column)
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if math.isnan(number):
            raise self.error(
                f"{column!r} is {value!r}, not a number", "give a mapping for class names"
            )
        if not low <= number <= high:
            raise self.error(
                f"{column!r} is {number:g}, outside {low:g} to {high:g}",
                "classes are read with a mapping of their names to 0 and 1",
            )
        return number

    def error(self, what: str, hint: str) -> OtterError:
        return OtterError(f"{self.path}, {self.unit} {self.line}: {what}", hint=hint)


def read_records(path: TableLike) -> Iterator[Record]:
    """The rows of a table, or of a jsonl, csv, tsv (each also as .gz) or parquet file, without
    blank lines. The paragraphs of a txt file are rows with one column, `text`."""
    if not isinstance(path, Path):
        return path.records()
    kind = format_of(path)
    if kind == "txt":
        return paragraph_records(path)
    if kind == "parquet":
        return parquet_records(path)
    if kind in ("jsonl", "ndjson"):
        return _json_records(path)
    if kind in ("csv", "tsv"):
        return _csv_records(path, delimiter=_csv_delimiter(path) if kind == "csv" else "\t")
    raise OtterError(
        f"{path}: its name says neither .jsonl nor .csv nor .tsv (plain or .gz) nor .parquet",
        hint="convert the file, or rename it if only its name is wrong",
    )


def read_rows(
    path: str | TableLike,
    parse: Callable[[Record], Row],
    *,
    at_least: int = 2,
) -> list[Row]:
    """All rows, parsed. Raises OtterError for fewer than `at_least`."""
    records = read_records(Path(path) if isinstance(path, str) else path)
    rows = [parse(record) for record in records]
    require_rows(path, len(rows), at_least)
    return rows


def require_rows(path: str | TableLike, count: int, at_least: int) -> None:
    if count < at_least:
        raise OtterError(
            f"{path}: {count or 'no'} example{'s' * (count != 1)}, at least {at_least} are needed",
            hint="is it the right file, and is it whole?",
        )


def _json_records(path: Path) -> Iterator[Record]:
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        record = Record(path, number, {})
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            hint = 'each line is one object, like {"text": "..."}'
            raise record.error(f"not JSON: {error}", hint) from error
        if not isinstance(values, dict):
            raise record.error(
                f"{_type_name(values)}, not an object", "each line is one JSON object"
            )
        yield Record(path, number, values)


def _csv_records(path: Path, delimiter: str) -> Iterator[Record]:
    rows = csv.reader((line for _, line in numbered_lines(path)), delimiter=delimiter, strict=True)
    first_line, columns = 1, None
    try:
        for row in rows:
            record = Record(path, first_line, {})
            # A quoted field may span lines: the next row starts after the last line read.
            first_line = rows.line_num + 1
            if not row:
                continue
            if columns is None:
                columns = _checked_header(row, record)
            elif len(row) != len(columns):
                raise record.error(
                    f"{len(row)} fields, but the header has {len(columns)}",
                    "quote fields that hold the delimiter, a quote or a line break",
                )
            else:
                yield Record(path, record.line, dict(zip(columns, row, strict=True)))
    except csv.Error as error:
        raise Record(path, first_line, {}).error(
            f"not CSV: {error}", _csv_hint(str(error))
        ) from error


def _csv_delimiter(path: Path) -> str:
    """A comma; or what divides the first two lines alike where the header has no comma. Some
    spreadsheets write semicolons."""
    lines = [line for _, line in islice(numbered_lines(path), 2)]
    if len(lines) == 2 and "," not in lines[0]:
        for delimiter in ";\t|":
            if 0 < lines[0].count(delimiter) == lines[1].count(delimiter):
                return delimiter
    return ","


def _csv_hint(message: str) -> str:
    if "expected after" in message:
        return 'write a quote inside a quoted field twice, as in "a ""b"" c"'
    return "is a quote left open?"


def _checked_header(row: list[str], record: Record) -> list[str]:
    twice = sorted({name for name in row if row.count(name) > 1})
    if twice:
        raise record.error(f"the header names {', '.join(map(repr, twice))} twice", "rename one")
    return row


def _type_name(value: object) -> str:
    """The type of a JSON value, in words."""
    names = {bool: "a truth value", int: "a number", float: "a number", str: "text"}
    names |= {list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), type(value).__name__)


TEXT_COLUMN = "text"


def paragraph_records(path: Path) -> Iterator[Record]:
    """The paragraphs of a text file, each with the number of its first line."""
    lines: list[str] = []
    first = 1
    for number, line in numbered_lines(path):
        if line.strip():
            first = first if lines else number
            lines.append(line)
        elif lines:
            yield Record(path, first, {TEXT_COLUMN: "".join(lines).rstrip("\r\n")})
            lines = []
    if lines:
        yield Record(path, first, {TEXT_COLUMN: "".join(lines).rstrip("\r\n")})


_PARQUET_HINT = "the file is not a whole parquet file: fetch or write it again"


def parquet_records(path: Path) -> Iterator[Record]:
    """Raises OtterError for a file that is damaged, empty or missing."""
    from pyarrow.parquet import ParquetFile

    try:
        if not path.stat().st_size:
            raise OtterError(f"{path}: the file is empty (0 bytes)", hint="fetch or write it again")
    except OSError as error:
        raise from_os_error(error, f"read {path}") from error
    before = 0
    with translate_library_errors(path, "the rows", library="pyarrow", hint=_PARQUET_HINT):
        for batch in ParquetFile(path).iter_batches():
            for number, values in enumerate(batch.to_pylist(), before + 1):
                yield Record(path, number, values, "row")
            before += len(batch)


_HUB_HINT = "check id, subset, split and revision, and whether the hub can be reached"


@dataclass(frozen=True)
class HubTable:
    """One split of a dataset of the hub. `subset`: its configuration, where it has several."""

    dataset: str
    split: str
    revision: str | None = None
    subset: str | None = None

    def __str__(self) -> str:
        return f"{self.dataset}, split {self.split}"

    def records(self) -> Iterator[Record]:
        """Raises OtterError for a missing dataset, and for an id without a revision."""
        if self.revision is None and not Path(self.dataset).is_dir():
            raise OtterError(
                f"dataset {self.dataset!r} has no revision",
                hint="give a commit or a tag: what its main branch holds may change (a folder in "
                "the hub's layout needs none)",
            )
        import datasets

        with translate_library_errors(f"dataset {self}", "it", library="datasets", hint=_HUB_HINT):
            rows = datasets.load_dataset(
                self.dataset, self.subset, split=self.split, revision=self.revision
            )
            for number, values in enumerate(rows, 1):
                yield Record(self, number, values, "row")
