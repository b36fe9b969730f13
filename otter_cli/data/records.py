"""Rows of files and other tables, with columns asked for by name."""

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from otter_cli.core.errors import OtterError
from otter_cli.core.suggest import closest
from otter_cli.data.lines import format_of, numbered_lines

Row = TypeVar("Row")


class Table(Protocol):
    """Rows that are no file of their own; as text it says where they are from."""

    def records(self) -> Iterator["Record"]: ...


Place = Path | Table


@dataclass(frozen=True)
class Record:
    """One row: where it stands, and its values by column."""

    path: Place
    line: int
    values: Mapping[str, Any]
    # What `line` counts: lines of a text, or rows of a table.
    unit: str = "line"

    def value(self, column: str) -> Any:
        """`a.b` also reaches into an object under `a`, `a.0` into a list; plain names go first."""
        if column in self.values:
            return self.values[column]
        outer, dot, inner = column.partition(".")
        nested = self.values.get(outer)
        if isinstance(nested, list):
            nested = {str(i): value for i, value in enumerate(nested)}
        if dot and isinstance(nested, Mapping):
            return replace(self, values=nested).value(inner)
        near = closest(column, self.values)
        raise self.error(
            f"no column {column!r}",
            (f"did you mean {near!r}? " if near else "")
            + f"its columns: {', '.join(map(repr, self.values)) or 'none'}",
        )

    def text(self, column: str) -> str:
        """Text with something in it besides white space."""
        value = self.value(column)
        if not isinstance(value, str):
            raise self.error(f"{column!r} is {_kind(value)}, not text", "name another column")
        if not value.strip():
            raise self.error(f"{column!r} is empty", "remove the row, or fill it")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            # JSON's \ud800 escapes can spell half a character, at which tokenizers fail.
            hint = "write the file again as UTF-8, without \\u escapes"
            raise self.error(f"{column!r} holds half a surrogate pair", hint) from error
        return value

    def number(self, column: str, low: float = -math.inf, high: float = math.inf) -> float:
        """A number from `low` to `high`, or text that spells one."""
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


def read_records(path: Place) -> Iterator[Record]:
    """The rows of a table, or of a jsonl, csv or tsv (or one of these with .gz) or parquet file;
    blank lines are left out. Paragraphs of a txt file are rows with one column, `text`."""
    if not isinstance(path, Path):
        return path.records()
    kind = format_of(path)
    if kind == "txt":
        from otter_cli.data.plain import paragraph_records

        return paragraph_records(path)
    if kind == "parquet":
        from otter_cli.data.parquet import parquet_records

        return parquet_records(path)
    if kind in ("jsonl", "ndjson"):
        return _json_records(path)
    if kind in ("csv", "tsv"):
        return _csv_records(path, delimiter="," if kind == "csv" else "\t")
    raise OtterError(
        f"{path}: its name says neither .jsonl nor .csv nor .tsv (plain or .gz) nor .parquet",
        hint="convert the file, or rename it if only its name is wrong",
    )


def read_rows(
    path: str | Place,
    parse: Callable[[Record], Row],
    *,
    at_least: int = 2,
) -> list[Row]:
    """Every row parsed; OtterError when fewer than `at_least` are there."""
    records = read_records(Path(path) if isinstance(path, str) else path)
    rows = [parse(record) for record in records]
    require_rows(path, len(rows), at_least)
    return rows


def require_rows(path: str | Place, count: int, at_least: int) -> None:
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
            raise record.error(f"{_kind(values)}, not an object", "each line is one JSON object")
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
                columns = _header(row, record)
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


def _csv_hint(message: str) -> str:
    if "expected after" in message:
        return 'write a quote inside a quoted field twice, as in "a ""b"" c"'
    return "is a quote left open?"


def _header(row: list[str], record: Record) -> list[str]:
    twice = sorted({name for name in row if row.count(name) > 1})
    if twice:
        raise record.error(f"the header names {', '.join(map(repr, twice))} twice", "rename one")
    return row


def _kind(value: object) -> str:
    """A JSON value's type, as people say it."""
    names = {bool: "a truth value", int: "a number", float: "a number", str: "text"}
    names |= {list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), type(value).__name__)
