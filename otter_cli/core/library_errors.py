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
from typing import Any

from otter_cli.core.errors import OtterError, from_os_error
from otter_cli.core.strict_files import read_small_file

_MAX_MESSAGE_LENGTH = 300
_MAX_SEARCHED_BYTES = 50_000_000
# Frames of the library that are searched for the name of a key: the innermost ones.
_SEARCHED_FRAMES = 6
_TOKENIZER_FILE = "tokenizer.json"
_POSITION = re.compile(r"at line (\d+) column (\d+)")
# How Python says which type was wrong.
_WRONG_TYPE = re.compile(
    r"'(\w+)' object|<class '(\w+)'>|got (\w+) \(value|instances of '(\w+)' and '(\w+)'|"
    r"unhashable type: '(\w+)'|not (NoneType)"
)
# Keys that transformers renamed: it reads both, and its messages name the newer one.
_RENAMED_KEYS = {"rope_scaling": "rope_parameters", "torch_dtype": "dtype"}
_DAMAGED_VALUE_HINT = "the value is damaged or of the wrong type: fetch the file again, or mend it"


@contextmanager
def translate_library_errors(
    place: Path | str,
    what: str,
    *,
    library: str,
    files: Sequence[str] = (),
    reword: Callable[[str], str] = str,
    hint: str = _DAMAGED_VALUE_HINT,
) -> Iterator[None]:
    """Around a library's own reading of a user's file or folder, and of nothing of ours.

    Whatever it raises becomes an OtterError, a panic of Rust code included, which is no Exception.
    `files` are those of the folder that the library reads: the one at fault is named, and its key,
    where the message or the library's code mention it. `reword` is applied to the message. What is
    no fault of a file passes.
    """
    try:
        yield
    except (OtterError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:
        if _is_out_of_memory(error):
            raise
        if isinstance(error, OSError) and error.strerror:
            raise from_os_error(error, f"read {place}") from error
        at = locate_fault(Path(place), files, error)
        raise OtterError(
            f"{Path(place) / at if at else place}: {library} cannot load {what}: "
            f"{reword(short_message(error))}",
            hint=hint,
        ) from error


def short_message(error: BaseException) -> str:
    """The library's message on one line, cut where it is long; its type where it says nothing."""
    text = " ".join(str(error).split())
    if not text or isinstance(error, KeyError | IndexError | AttributeError | TypeError):
        text = f"{type(error).__name__}: {text}".rstrip(": ")
    return text if len(text) <= _MAX_MESSAGE_LENGTH else text[: _MAX_MESSAGE_LENGTH - 3] + "..."


def _is_out_of_memory(error: BaseException) -> bool:
    """torch's own out-of-memory error, told by its name: torch need not be loaded."""
    return any("OutOfMemory" in kind.__name__ for kind in type(error).__mro__)


def locate_fault(place: Path, files: Sequence[str], error: BaseException) -> str:
    """The file of the folder, and its key where the evidence points to one; else all of `files`
    that are there."""
    there = [name for name in files if (place / name).is_file()]
    if not there:
        return ""
    at = _POSITION.search(str(error))
    if at and _TOKENIZER_FILE in there:  # only this file is read by a parser that counts lines
        key = _key_before(place / _TOKENIZER_FILE, int(at[1]), int(at[2]))
        return f"{_TOKENIZER_FILE}: {key}" if key else _TOKENIZER_FILE
    named = _entries_at_fault(place, there, error)
    if len(named) == 1:
        [(name, key, value)] = named
        shown = json.dumps(value)
        return f"{name}: {key} is {shown}" if len(shown) <= 60 else f"{name}: {key}"
    if named and len({key for _, key, _ in named}) == 1:
        return f"{' or '.join(name for name, _, _ in named)}: {named[0][1]}"
    return " or ".join(there)


ConfigEntry = tuple[str, str, Any]


def _entries_at_fault(place: Path, there: list[str], error: BaseException) -> list[ConfigEntry]:
    """Entries that the message names, or that the library's code worked on; those of the type that
    the message complains of, where it says one."""
    message = str(error)
    words = {word for match in _WRONG_TYPE.finditer(message) for word in match.groups() if word}
    wrong = {"NoneType" if word == "None" else word for word in words}
    entries = [
        (name, key, value)
        for name in there
        for key, value in _entries(place / name)
        if not wrong or type(value).__name__ in wrong
    ]
    in_message = [
        entry
        for entry in entries
        if _mentions(message, entry[1]) or _mentions(message, _RENAMED_KEYS.get(entry[1], ""))
    ]
    if in_message:
        # Of keys that the message names, the one whose value it shows too.
        shown = [entry for entry in in_message if f"{entry[2]!r}" in message]
        return shown if len(in_message) > 1 and shown else in_message
    if not wrong:
        return [entry for entry in entries if str(error) == repr(entry[2])]
    # Sound nulls and texts are everywhere: code that works on one is no evidence against it.
    entries = [entry for entry in entries if not isinstance(entry[2], str | None)]
    for frame in reversed(traceback.extract_tb(error.__traceback__)[-_SEARCHED_FRAMES:]):
        in_code = [entry for entry in entries if _mentions(frame.line or "", entry[1])]
        if in_code:
            return in_code
    return []


def _mentions(text: str, key: str) -> bool:
    return len(key) > 3 and re.search(rf"(?<!\w){re.escape(key)}(?!\w)", text) is not None


def _key_before(path: Path, line: int, column: int) -> str:
    """The last key before a place in a JSON file, as its parser counts lines and columns."""
    if path.stat().st_size > _MAX_SEARCHED_BYTES:
        return ""
    lines = read_small_file(path, limit=_MAX_SEARCHED_BYTES).split(b"\n")
    if line > len(lines) or column > len(lines[line - 1]) + 1:
        return ""
    before = b"\n".join([*lines[: line - 1], lines[line - 1][:column]])
    keys = re.findall(rb'"([A-Za-z_]\w*)"\s*:', before)
    return keys[-1].decode() if keys else ""


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    """Keys and values two levels deep: deeper ones are vocabularies and merges."""
    if path.suffix != ".json" or path.stat().st_size > _MAX_SEARCHED_BYTES:
        return
    try:
        values = json.loads(read_small_file(path, limit=_MAX_SEARCHED_BYTES))
    except (ValueError, RecursionError):
        return
    if not isinstance(values, dict):
        return
    for key, value in values.items():
        yield key, value
        if isinstance(value, dict):
            yield from value.items()
