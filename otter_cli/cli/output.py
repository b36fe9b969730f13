"""stdout: data for people or for programs, and nothing that a library prints in between."""

import dataclasses
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from otter_cli.core.escaping import json_text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_WIDTH_OF_FILES = 100


def console() -> "Console":
    """A rich console on stdout; in a pipe or a file lines are 100 columns wide, or $COLUMNS."""
    from otter_cli.core.safe_console import SafeConsole

    wide = sys.stdout.isatty() or "COLUMNS" in os.environ
    return SafeConsole(width=None if wide else _WIDTH_OF_FILES)


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
    text = json.dumps(data, default=_plain, ensure_ascii=False, allow_nan=False, indent=indent)
    sys.stdout.write(json_text(text) + "\n")
    sys.stdout.flush()


def _plain(value: Any) -> Any:
    if isinstance(value, PurePath):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if hasattr(value, "model_dump"):  # pydantic
        return value.model_dump(mode="json")
    if hasattr(value, "tolist"):  # numpy and torch, scalars and arrays
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no place in JSON output")
