"""JSON from strangers: bounded, unambiguous, and refused with the place where it is wrong."""

import json
from collections import Counter
from pathlib import Path
from stat import S_ISREG
from typing import Any

from otter_cli.core.errors import OtterError
from otter_cli.core.small_files import OWN_BYTES, read_small

MAX_BYTES = 100_000_000

# A mark is one of `, : { [`. Parsed, each costs some 100 bytes, so that few bytes of text could
# ask for a lot of memory. Real headers have a dozen marks per tensor: this is 160,000 tensors.
_MAX_MARKS = 2_000_000
_MAX_DIGITS = 100

# One character beyond Latin makes Python hold the whole text in two or four bytes a character.
_MAX_WIDE_BYTES = 10_000_000


def shown(text: str) -> str:
    """A name from a file as it may be shown: control characters escaped, never long."""
    return ascii(text if len(text) <= 80 else text[:77] + "...")


def is_plain(text: str) -> bool:
    """Whether a name can be shown and written as it is: not empty, no control characters."""
    return bool(text) and text.isprintable()


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """The JSON object in `data`; a key given twice anywhere in it is refused."""
    if sum(data.count(mark) for mark in b",:{[") > _MAX_MARKS:
        raise OtterError(f"{where}: far more entries than any checkpoint has", hint=_DAMAGED)
    if len(data) > _MAX_WIDE_BYTES and not data.isascii():
        raise OtterError(f"{where}: far more text than any checkpoint has", hint=_DAMAGED)
    return _object(data, where)


def _object(data: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(
            data.decode(),
            object_pairs_hook=lambda pairs: _unique(pairs, where),
            parse_int=lambda digits: _whole(digits, where),
        )
        if b"\\u" in data:  # an escape can spell half a character, which cannot be written again
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise OtterError(f"{where}: JSON nested too deeply", hint=_DAMAGED) from error
    except ValueError as error:
        raise OtterError(f"{where}: not JSON: {error}", hint=_DAMAGED) from error
    if not isinstance(value, dict):
        raise OtterError(f"{where}: a JSON object was expected", hint=_DAMAGED)
    return value


def read_object(path: Path, where: str = "") -> dict[str, Any]:
    """The JSON object that a regular file of sane size holds; `where` is what errors call it."""
    where = where or str(path)
    return parse_object(read_small(path, limit=MAX_BYTES, where=where), where)


def read_own_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file that otter writes itself, however many entries that has."""
    return _object(read_small(path, limit=OWN_BYTES), str(path))


def regular_size(path: Path, shown_as: Path | None = None) -> int:
    """Size in bytes; a device, pipe or folder, which reading could hang on, is refused. `shown_as`:
    the path that the user knows, where `path` is what a link leads to."""
    status = path.stat()
    if not S_ISREG(status.st_mode):
        raise OtterError(
            f"{shown_as or path}: not a regular file", hint="a checkpoint holds plain files only"
        )
    return status.st_size


_DAMAGED = "the file is damaged or not what it claims to be: fetch it again"


def _whole(digits: str, where: str) -> int:
    """Tokenizers write 10**30 for "no limit"; nothing is counted in hundreds of digits."""
    if len(digits) > _MAX_DIGITS:
        raise OtterError(f"{where}: a number of {len(digits):,} digits", hint=_DAMAGED)
    return int(digits)


def _unique(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        [(twice, _)] = counts.most_common(1)
        raise OtterError(
            f"{where}: {shown(twice)} occurs twice",
            hint="two readers could see two different models: write the file again",
        )
    return found
