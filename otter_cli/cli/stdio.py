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
    """A rich console on stdout; in a pipe or a file lines are 100 columns wide, or $COLUMNS."""
    from otter_cli.core.safe_console import SafeConsole

    wide = sys.stdout.isatty() or "COLUMNS" in os.environ
    return SafeConsole(width=None if wide else _WIDTH_WITHOUT_TERMINAL)


def show(view: "RenderableType") -> None:
    """Text goes out unwrapped; anything else rich lays out. Control characters become escapes, on a
    terminal and in a file: --json is the exact data."""
    if isinstance(view, str):
        console().print(view, soft_wrap=True)
    else:
        console().print(view)


@contextmanager
def stdout_reserved() -> Iterator[None]:
    """Whatever is printed inside goes to stderr: by Python, by C code, by child processes."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        # Text that a library's own handle on stdout still buffers must leave before the door shuts.
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def print_json(data: Mapping[str, Any]) -> None:
    """One object; raises ValueError for NaN and infinity, which JSON does not have."""
    _write_json(data, indent=2 if sys.stdout.isatty() else None)


def print_json_lines(data: Iterable[Mapping[str, Any]]) -> None:
    """One object a line; raises ValueError as `print_json`."""
    for one in data:
        _write_json(one, indent=None)


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
    raise TypeError(f"{type(value).__name__} has no place in JSON output")


def stdin_lines() -> Iterator[str]:
    """Without their ends. Raises OtterError for bytes that are not UTF-8.

    Decoded by hand: a locale decodes stdin strictly, or leaves halves of characters in it.
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
