"""Standard output and input of the verbs.

Output is for people or for programs: under --json nothing else reaches stdout, whoever prints it.
Input is read as UTF-8 in every locale.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from otter_cli.core.errors import OtterError
from otter_cli.core.formatting import json_text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


_WIDTH_WITHOUT_TERMINAL = 100


def console() -> "Console":
    """A rich console on stdout. Lines in a pipe or a file are $COLUMNS wide, by default 100."""
    from otter_cli.core.safe_console import SafeConsole

    wide = sys.stdout.isatty() or "COLUMNS" in os.environ
    return SafeConsole(width=None if wide else _WIDTH_WITHOUT_TERMINAL)


def show(view: "RenderableType") -> None:
    """Prints text without wrapping, and lays out any other renderable. Control characters become
    escapes, on a terminal and in a file; only --json gives the exact data."""
    console().print(view, soft_wrap=isinstance(view, str))


@contextmanager
def stdout_reserved() -> Iterator[None]:
    """Sends to stderr what Python, C code and child processes print to stdout inside."""
    sys.stdout.flush()
    saved_stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        # A library's own handle may still buffer text, which must go to stderr too.
        sys.stdout.flush()
        os.dup2(saved_stdout, 1)
        os.close(saved_stdout)


def print_json(data: Mapping[str, Any]) -> None:
    """Prints one object. Raises ValueError for NaN and infinity, which JSON does not have."""
    _write_json(data, indent=2 if sys.stdout.isatty() else None)


def print_json_lines(data: Iterable[Mapping[str, Any]]) -> None:
    """Prints one object per line. Raises ValueError as `print_json` does."""
    for record in data:
        _write_json(record, indent=None)


def _write_json(data: Mapping[str, Any], indent: int | None) -> None:
    text = json.dumps(data, default=_json_value, ensure_ascii=False, allow_nan=False, indent=indent)
    sys.stdout.write(json_text(text) + "\n")
    sys.stdout.flush()


def _json_value(value: Any) -> Any:
    if isinstance(value, PurePath):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if hasattr(value, "model_dump"):  # pydantic
        return value.model_dump(mode="json")
    if hasattr(value, "tolist"):  # numpy and torch, scalars and arrays
        return value.tolist()
    raise TypeError(f"JSON cannot hold a {type(value).__name__}")


def stdin_lines() -> Iterator[str]:
    """Lines of stdin without their line ends. Raises OtterError for bytes that are not UTF-8.

    The bytes are decoded here, because Python decodes stdin by the locale: strictly, or with
    surrogate characters for bytes that are not valid.
    """
    for number, line in enumerate(getattr(sys.stdin, "buffer", sys.stdin), 1):
        if isinstance(line, str):
            yield line.rstrip("\r\n")
            continue
        try:
            yield line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise OtterError(
                f"stdin, line {number}: byte {error.start + 1} (0x{line[error.start]:02x}) is not "
                "UTF-8",
                hint="convert it, e.g. `iconv -f latin1 -t utf-8`",
            ) from error
