"""Strict readers for files that otter did not write: bounded bytes, JSON, YAML and links.

A pipe would hang a reader, and a sparse file would fill the memory, so every text is read from a
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
# A file that otter wrote itself: samples of a long run, the log of a long training.
MAX_OWN_FILE_BYTES = 2_000_000_000

_CHUNK = 1 << 16
_OPEN_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def read_small_file(
    path: str | Path, *, limit: int = MAX_SMALL_FILE_BYTES, where: str = ""
) -> bytes:
    """The content of a regular file of at most `limit` bytes. Raises OtterError for any other, and
    for what the operating system refuses. `where` is what errors call it, by default its path."""
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
            # A file of /proc has size 0 and content, another one may be growing.
            while len(data) <= limit and (more := file.read(_CHUNK)):
                data += more
    except OSError as error:
        raise from_os_error(error, f"read {where}") from error
    if len(data) > limit:
        raise OtterError(
            f"{where}: over the limit of {limit:,} bytes", hint="the file is not what its name says"
        )
    return data


def read_small_text_file(path: str | Path, *, limit: int = MAX_SMALL_FILE_BYTES) -> str:
    """The same as UTF-8 text."""
    try:
        return read_small_file(path, limit=limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise OtterError(
            f"{path}: byte {error.start + 1} is not UTF-8", hint="save the file as UTF-8 text"
        ) from error


MAX_JSON_BYTES = 100_000_000

# A mark is one of `, : { [`. Parsed, each costs some 100 bytes, so that few bytes of text could
# ask for a lot of memory. Real headers have a dozen marks per tensor: this is 160,000 tensors.
_MAX_JSON_MARKS = 2_000_000
_MAX_DIGITS = 100

# One character beyond Latin makes Python hold the whole text in two or four bytes a character.
_MAX_NON_ASCII_BYTES = 10_000_000


def quoted(text: str) -> str:
    """A name from a file as it may be shown: control characters escaped, never long."""
    return ascii(text if len(text) <= 80 else text[:77] + "...")


def is_printable(text: str) -> bool:
    """Whether a name can be shown and written as it is: not empty, no control characters."""
    return bool(text) and text.isprintable()


def parse_json_object(data: bytes, where: str) -> dict[str, Any]:
    """The JSON object in `data`; a key given twice anywhere in it is refused."""
    if sum(data.count(mark) for mark in b",:{[") > _MAX_JSON_MARKS:
        raise OtterError(f"{where}: far more entries than any checkpoint has", hint=_DAMAGED_HINT)
    if len(data) > _MAX_NON_ASCII_BYTES and not data.isascii():
        raise OtterError(f"{where}: far more text than any checkpoint has", hint=_DAMAGED_HINT)
    return _load_json_object(data, where)


def _load_json_object(data: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(
            data.decode(),
            object_pairs_hook=lambda pairs: _refuse_duplicate_keys(pairs, where),
            parse_int=lambda digits: _parse_integer(digits, where),
        )
        if b"\\u" in data:  # an escape can spell half a character, which cannot be written again
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise OtterError(f"{where}: JSON nested too deeply", hint=_DAMAGED_HINT) from error
    except ValueError as error:
        raise OtterError(f"{where}: not JSON: {error}", hint=_DAMAGED_HINT) from error
    if not isinstance(value, dict):
        raise OtterError(f"{where}: a JSON object was expected", hint=_DAMAGED_HINT)
    return value


def read_json_object(path: Path, where: str = "") -> dict[str, Any]:
    """The JSON object that a regular file of sane size holds; `where` is what errors call it."""
    where = where or str(path)
    return parse_json_object(read_small_file(path, limit=MAX_JSON_BYTES, where=where), where)


def read_own_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file that otter writes itself, however many entries that has."""
    return _load_json_object(read_small_file(path, limit=MAX_OWN_FILE_BYTES), str(path))


def regular_size(path: Path, shown_as: Path | None = None) -> int:
    """Size in bytes; a device, pipe or folder, which reading could hang on, is refused. `shown_as`:
    the path that the user knows, where `path` is what a link leads to."""
    status = path.stat()
    if not S_ISREG(status.st_mode):
        raise OtterError(
            f"{shown_as or path}: not a regular file", hint="a checkpoint holds plain files only"
        )
    return status.st_size


_DAMAGED_HINT = "the file is damaged or not what it claims to be: fetch it again"


def _parse_integer(digits: str, where: str) -> int:
    """Tokenizers write 10**30 for "no limit"; nothing is counted in hundreds of digits."""
    if len(digits) > _MAX_DIGITS:
        raise OtterError(f"{where}: a number of {len(digits):,} digits", hint=_DAMAGED_HINT)
    return int(digits)


def _refuse_duplicate_keys(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        [(twice, _)] = counts.most_common(1)
        raise OtterError(
            f"{where}: {quoted(twice)} occurs twice",
            hint="two readers could see two different models: write the file again",
        )
    return found


# Values after every alias is replaced by what it stands for; a recipe has some hundred.
_MAX_YAML_VALUES = 100_000


def read_yaml(path: str | Path, *, hint: str) -> Any:
    """What a small YAML file holds. Raises OtterError with the line of what is wrong."""
    return parse_yaml(read_small_text_file(path), str(path), hint=hint)


def parse_yaml(text: str, where: str, *, hint: str) -> Any:
    """What `text` holds; `where` is what the error calls it."""
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
    """Depth first, each node once; `sizes` counts a node as often as it is repeated."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: Any) -> int:
        if id(node) in sizes:
            return sizes[id(node)]
        if id(node) in open_nodes:
            raise OtterError(f"{where}: an alias stands for a part of itself", hint=hint)
        open_nodes.add(id(node))
        total = 1 + sum(size(inner) for inner in _yaml_children(node, where))
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
    """The real path of the file called `name` in `folder`; OtterError when that leads outside.

    `name` comes from a stranger: absolute paths, `..` and links to elsewhere are refused.
    """
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
    except (OSError, RuntimeError) as error:  # a loop of links, or a name too long
        raise OtterError(f"{folder}: {quoted(name)} cannot be followed", hint=_LINK_HINT) from error
    if not any(real.is_relative_to(root) for root in _allowed_roots(folder.resolve())):
        raise OtterError(
            f"{folder}: {quoted(name)} leads outside the folder, to {real}", hint=_LINK_HINT
        )
    return real


_LINK_HINT = "put the file itself into the folder"


def _allowed_roots(folder: Path) -> list[Path]:
    """A snapshot of the hub cache, CACHE/models--X/snapshots/COMMIT, is links to two stores."""
    repository = folder.parent.parent
    if folder.parent.name == "snapshots" and repository.name.startswith("models--"):
        return [folder, repository / "blobs", repository.parent / "blobs"]
    return [folder]
