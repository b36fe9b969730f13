"""Errors that a library raises about a user's file, as OtterErrors that name the file and the key.

Libraries such as transformers report a damaged file by any exception. The message and the traceback
are searched for the key at fault.
"""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from otter_cli.core.errors import OtterError, from_os_error
from otter_cli.core.strict_files import read_small_file

_MAX_MESSAGE_LENGTH = 300
_MAX_SHOWN_VALUE = 60
_MAX_SEARCHED_BYTES = 50_000_000
# The innermost frames of the library, which are searched for the name of a key.
_SEARCHED_FRAMES = 6
_TOKENIZER_FILE = "tokenizer.json"
_POSITION = re.compile(r"at line (\d+) column (\d+)")
# Python's messages about a wrong type.
_WRONG_TYPE = re.compile(
    r"'(\w+)' object|<class '(\w+)'>|got (\w+) \(value|instances of '(\w+)' and '(\w+)'|"
    r"unhashable type: '(\w+)'|not (NoneType)"
)
# Keys that transformers renamed. It reads both names, and its messages have the new one.
_RENAMED_KEYS = {"rope_scaling": "rope_parameters", "torch_dtype": "dtype"}


@contextmanager
def translate_library_errors(
    place: Path | str,
    what: str,
    *,
    library: str,
    files: Sequence[str] = (),
    reword: Callable[[str], str] = str,
    hint: str = "the value is damaged or of the wrong type: fetch the file again, or mend it",
) -> Iterator[None]:
    """Raises every error of the block as an OtterError, a panic of Rust code (no Exception)
    included. The block must contain only the library's reading of a user's file or folder.

    `files` are the files in the folder that the library reads. The message names the file at fault,
    and its key where the error or the library's code mention it. `reword` is applied to the
    library's message. OtterError, interrupts and out-of-memory errors pass unchanged.
    """
    try:
        yield
    except (OtterError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:
        # torch's own out-of-memory error. It is found by name, because torch need not be loaded.
        if any("OutOfMemory" in kind.__name__ for kind in type(error).__mro__):
            raise
        if isinstance(error, OSError) and error.strerror:
            raise from_os_error(error, f"read {place}") from error
        fault = locate_fault(Path(place), files, error)
        raise OtterError(
            f"{Path(place) / fault if fault else place}: {library} cannot load {what}: "
            f"{reword(short_message(error))}",
            hint=hint,
        ) from error


def short_message(error: BaseException) -> str:
    """The library's message on one line, cut where it is long, with the type where it needs one."""
    text = " ".join(str(error).split())
    if not text or isinstance(error, KeyError | IndexError | AttributeError | TypeError):
        text = f"{type(error).__name__}: {text}".rstrip(": ")
    return text if len(text) <= _MAX_MESSAGE_LENGTH else text[: _MAX_MESSAGE_LENGTH - 3] + "..."


def locate_fault(folder: Path, files: Sequence[str], error: BaseException) -> str:
    """The file at fault, and its key where the error points to one. Otherwise all of `files` that
    exist, joined by "or"."""
    existing = [name for name in files if (folder / name).is_file()]
    if not existing:
        return ""
    position = _POSITION.search(str(error))
    if position and _TOKENIZER_FILE in existing:  # only the parser of this file counts lines
        key = _key_before(folder / _TOKENIZER_FILE, int(position[1]), int(position[2]))
        return f"{_TOKENIZER_FILE}: {key}" if key else _TOKENIZER_FILE
    entries = _entries_at_fault(folder, existing, error)
    if len(entries) == 1:
        [entry] = entries
        value = json.dumps(entry.value)
        shown = f" is {value}" if len(value) <= _MAX_SHOWN_VALUE else ""
        return f"{entry.file}: {entry.key}{shown}"
    if len({entry.key for entry in entries}) == 1:
        return f"{' or '.join(entry.file for entry in entries)}: {entries[0].key}"
    return " or ".join(existing)


class ConfigEntry(NamedTuple):
    file: str
    key: str
    value: Any


def _entries_at_fault(folder: Path, files: list[str], error: BaseException) -> list[ConfigEntry]:
    """Entries that the message names, or else that the library's code worked on. Where the message
    complains of a type, only entries of that type."""
    message = str(error)
    words = {word for match in _WRONG_TYPE.finditer(message) for word in match.groups() if word}
    wrong_types = {"NoneType" if word == "None" else word for word in words}
    entries = [
        entry
        for file in files
        for entry in _entries(folder, file)
        if not wrong_types or type(entry.value).__name__ in wrong_types
    ]
    named = [
        entry
        for entry in entries
        if _mentions(message, entry.key) or _mentions(message, _RENAMED_KEYS.get(entry.key, ""))
    ]
    if named:
        # The message may name several keys, and show the value of one.
        shown = [entry for entry in named if f"{entry.value!r}" in message]
        return shown if len(named) > 1 and shown else named
    if not wrong_types:
        return [entry for entry in entries if message == repr(entry.value)]
    # Sound nulls and texts are common, so code that works on one is no evidence against it.
    entries = [entry for entry in entries if not isinstance(entry.value, str | None)]
    for frame in reversed(traceback.extract_tb(error.__traceback__)[-_SEARCHED_FRAMES:]):
        in_code = [entry for entry in entries if _mentions(frame.line or "", entry.key)]
        if in_code:
            return in_code
    return []


def _mentions(text: str, key: str) -> bool:
    return len(key) > 3 and re.search(rf"(?<!\w){re.escape(key)}(?!\w)", text) is not None


def _read_searched(path: Path) -> bytes:
    """The content of a file, empty where it is too large to be searched."""
    if path.stat().st_size > _MAX_SEARCHED_BYTES:
        return b""
    return read_small_file(path, limit=_MAX_SEARCHED_BYTES)


def _key_before(path: Path, line: int, column: int) -> str:
    """The last key before a position in a JSON file, in its parser's lines and columns."""
    lines = _read_searched(path).split(b"\n")
    if line > len(lines) or column > len(lines[line - 1]) + 1:
        return ""
    before = b"\n".join([*lines[: line - 1], lines[line - 1][:column]])
    keys = re.findall(rb'"([A-Za-z_]\w*)"\s*:', before)
    return keys[-1].decode() if keys else ""


def _entries(folder: Path, file: str) -> Iterator[ConfigEntry]:
    """Keys and values of two levels. Deeper levels are vocabularies and merges."""
    if not file.endswith(".json"):
        return
    try:
        values = json.loads(_read_searched(folder / file))
    except (ValueError, RecursionError):
        return
    if not isinstance(values, dict):
        return
    for key, value in values.items():
        yield ConfigEntry(file, key, value)
        if isinstance(value, dict):
            yield from (ConfigEntry(file, inner, item) for inner, item in value.items())
