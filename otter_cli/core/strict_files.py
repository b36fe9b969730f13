"""Strict readers for files that otter did not write: bounded bytes, JSON, YAML and links.

A pipe would block a reader, and a sparse file would fill the memory, so every text is read from a
regular file of limited size. Ambiguous content, such as a key given twice, is refused with its
place. `resolve_inside` refuses file names that lead out of their folder.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from stat import S_ISREG
from typing import Any

from otter_cli.core.errors import OtterError, from_os_error

MAX_SMALL_FILE_BYTES = 100_000_000
# For files that otter wrote itself, such as the samples of a long run or the log of a training.
MAX_OWN_FILE_BYTES = 2_000_000_000

_CHUNK_BYTES = 1 << 16
_OPEN_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

# A mark is one of `, : { [`. A parsed mark takes about 100 bytes, so a small text could need much
# memory. Real headers have a dozen marks per tensor, so this allows 160,000 tensors.
_MAX_JSON_MARKS = 2_000_000
_MAX_DIGITS = 100
# With one character beyond Latin, Python stores the whole text in two or four bytes a character.
_MAX_NON_ASCII_BYTES = 10_000_000
# Every alias counts as the values it stands for. A recipe has some hundred values.
_MAX_YAML_VALUES = 100_000

_DAMAGED_HINT = "the file is damaged or not what it claims to be: fetch it again"
_LINK_HINT = "put the file itself into the folder"


def quoted(text: str) -> str:
    """A name from a file for an error message: control characters escaped, and cut where long."""
    return ascii(text if len(text) <= 80 else text[:77] + "...")


def is_printable(text: str) -> bool:
    """Whether a name is not empty and has no control characters, so it can be shown as it is."""
    return bool(text) and text.isprintable()


def read_small_file(
    path: str | Path, *, limit: int = MAX_SMALL_FILE_BYTES, where: str = ""
) -> bytes:
    """The content of a regular file of at most `limit` bytes. Raises OtterError for other files,
    and for errors of the operating system. `where` replaces the path in messages."""
    where = where or str(path)
    try:
        handle = os.open(path, _OPEN_FLAGS)
        with open(handle, "rb") as file:
            status = os.fstat(handle)
            if not S_ISREG(status.st_mode):
                raise OtterError(f"{where}: not a regular file", hint="give a plain file")
            if status.st_size > limit:
                raise OtterError(
                    f"{where}: {status.st_size:,} bytes is over the limit of {limit:,}",
                    hint="the file is damaged or not what its name says",
                )
            data = file.read(status.st_size + 1)
            # A file of /proc has content and size 0, and another file may be growing.
            while len(data) <= limit and (more := file.read(_CHUNK_BYTES)):
                data += more
    except OSError as error:
        raise from_os_error(error, f"read {where}") from error
    if len(data) > limit:
        raise OtterError(
            f"{where}: over the limit of {limit:,} bytes", hint="the file is not what its name says"
        )
    return data


def read_small_text_file(path: str | Path, *, limit: int = MAX_SMALL_FILE_BYTES) -> str:
    """The content of a small file as UTF-8 text, see read_small_file."""
    try:
        return read_small_file(path, limit=limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise OtterError(
            f"{path}: byte {error.start + 1} is not UTF-8", hint="save the file as UTF-8 text"
        ) from error


def regular_size(path: Path, shown_as: Path | None = None) -> int:
    """The size of a regular file in bytes. Raises OtterError for a device, pipe or folder, which
    could block a reader. `shown_as` replaces a path that a link led to in messages."""
    status = path.stat()
    if not S_ISREG(status.st_mode):
        raise OtterError(
            f"{shown_as or path}: not a regular file", hint="a checkpoint holds plain files only"
        )
    return status.st_size


def read_json_object(path: Path, where: str = "") -> dict[str, Any]:
    """The JSON object in a small file, see parse_json_object."""
    where = where or str(path)
    return parse_json_object(read_small_file(path, where=where), where)


def read_own_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file that otter wrote itself, with any number of entries."""
    return _load_json_object(read_small_file(path, limit=MAX_OWN_FILE_BYTES), str(path))


def parse_json_object(data: bytes, where: str) -> dict[str, Any]:
    """The JSON object in `data`. Raises OtterError for other values, for a key that occurs twice in
    any object, and for more entries or text than a checkpoint's files have."""
    if sum(data.count(mark) for mark in b",:{[") > _MAX_JSON_MARKS:
        raise OtterError(f"{where}: far more entries than any checkpoint has", hint=_DAMAGED_HINT)
    if len(data) > _MAX_NON_ASCII_BYTES and not data.isascii():
        raise OtterError(f"{where}: far more text than any checkpoint has", hint=_DAMAGED_HINT)
    return _load_json_object(data, where)


def _load_json_object(data: bytes, where: str) -> dict[str, Any]:
    def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
            raise OtterError(
                f"{where}: {quoted(name)} occurs twice",
                hint="two readers could see two different models: write the file again",
            )
        return values

    def integer(digits: str) -> int:
        """Tokenizers write 10**30 for "no limit", but no number has hundreds of digits."""
        if len(digits) > _MAX_DIGITS:
            raise OtterError(f"{where}: a number of {len(digits):,} digits", hint=_DAMAGED_HINT)
        return int(digits)

    try:
        value = json.loads(data.decode(), object_pairs_hook=unique_keys, parse_int=integer)
        if b"\\u" in data:  # an escape may be half of a character, which cannot be written again
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise OtterError(f"{where}: JSON nested too deeply", hint=_DAMAGED_HINT) from error
    except ValueError as error:
        raise OtterError(f"{where}: not JSON: {error}", hint=_DAMAGED_HINT) from error
    if not isinstance(value, dict):
        raise OtterError(f"{where}: a JSON object was expected", hint=_DAMAGED_HINT)
    return value


def read_yaml(path: str | Path, *, hint: str) -> Any:
    """The value in a small YAML file, see parse_yaml."""
    return parse_yaml(read_small_text_file(path), str(path), hint=hint)


def parse_yaml(text: str, where: str, *, hint: str) -> Any:
    """The value of a YAML text. Raises OtterError, with the line where it is known, for text that
    is not YAML, for a key that occurs twice, and for more values than a settings file has."""
    import yaml

    try:
        node = yaml.compose(text, yaml.SafeLoader)
        if node is None:
            return None
        _check_yaml_size(node, where, hint)
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or type(error).__name__
        raise OtterError(f"{where}{line}: not YAML: {problem}", hint=hint) from error


def _check_yaml_size(root: Any, where: str, hint: str) -> None:
    """Visits each node once, depth first. `sizes` counts a node as often as aliases repeat it."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: Any) -> int:
        if id(node) in sizes:
            return sizes[id(node)]
        if id(node) in open_nodes:
            raise OtterError(f"{where}: an alias stands for a part of itself", hint=hint)
        open_nodes.add(id(node))
        total = 1 + sum(size(child) for child in _yaml_children(node, where))
        open_nodes.discard(id(node))
        if total > _MAX_YAML_VALUES:
            raise OtterError(f"{where}: far more values than a settings file has", hint=hint)
        sizes[id(node)] = total
        return total

    size(root)


def _yaml_children(node: Any, where: str) -> Iterator[Any]:
    if node.id == "sequence":
        yield from node.value
    if node.id != "mapping":
        return
    seen: set[str] = set()
    for key, value in node.value:
        name = str(key.value)
        if key.id == "scalar" and name in seen and name != "<<":
            raise OtterError(
                f"{where}, line {key.start_mark.line + 1}: {name!a} occurs twice",
                hint="keep one of the two: only the last would count",
            )
        seen.add(name)
        yield value


def resolve_inside(folder: Path, name: str) -> Path:
    """The real path of the file `name` in `folder`. Raises OtterError where it is missing, or lies
    outside: `name` is not trusted, so absolute paths, `..` and links to elsewhere are refused."""
    if not is_printable(name) or "\\" in name or PurePosixPath(name).is_absolute():
        raise OtterError(f"{folder}: {quoted(name)} is no file name", hint=_LINK_HINT)
    if str(PurePosixPath(name)) != name or ".." in PurePosixPath(name).parts:
        raise OtterError(f"{folder}: {quoted(name)} leads outside the folder", hint=_LINK_HINT)
    try:
        real = (folder / name).resolve(strict=True)
    except FileNotFoundError as error:
        link = (folder / name).is_symlink()
        what = "is a link to a file that does not exist" if link else "is missing"
        raise OtterError(
            f"{folder}: {quoted(name)} {what}", hint="the folder is incomplete: fetch it again"
        ) from error
    except (OSError, RuntimeError) as error:  # a loop of links, or a name that is too long
        raise OtterError(f"{folder}: {quoted(name)} cannot be followed", hint=_LINK_HINT) from error
    roots = [folder.resolve()]
    repository = roots[0].parent.parent
    # A snapshot in the hub's cache, CACHE/models--X/snapshots/COMMIT, has links to two stores.
    if roots[0].parent.name == "snapshots" and repository.name.startswith("models--"):
        roots += [repository / "blobs", repository.parent / "blobs"]
    if not any(real.is_relative_to(root) for root in roots):
        raise OtterError(
            f"{folder}: {quoted(name)} leads outside the folder, to {real}", hint=_LINK_HINT
        )
    return real
