"""Headers of GGUF files, checked in full before a library reads the file.

The reader of the gguf package trusts the lengths in a file, so a damaged file can make it loop for
hours. Here every length and every offset is checked against the file.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from otter_cli.checkpoint.folder import GGUF_MAGIC
from otter_cli.core.errors import OtterError, from_os_error
from otter_cli.core.strict_files import quoted, regular_size

_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 4
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q",
            11: "<q", 12: "<d"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor: its shape in torch's order, its type, and the place of its bytes in the file."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    type_name: str
    start: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class StringArray:
    """An array of texts, such as the vocabulary. Only its length is kept."""

    length: int


@dataclass(frozen=True)
class GgufHeader:
    """`entries` holds where each metadata entry starts and ends in the file, by key."""

    path: Path
    version: int
    metadata: dict[str, Any]
    entries: dict[str, tuple[int, int]]
    tensors: dict[str, GgufTensor]
    alignment: int
    data_start: int
    size: int

    @property
    def architecture(self) -> str:
        return str(self.metadata["general.architecture"])


def damaged_gguf(path: Path, what: str) -> OtterError:
    return OtterError(f"{path}: {what}", hint="the file is damaged or was cut off: fetch it again")


def read_gguf_header(path: Path) -> GgufHeader:
    """The header of `path`. Raises OtterError unless the file is sound from end to end."""
    try:
        if regular_size(path) < 4:
            raise _not_gguf(path)
        with (
            open(path, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view,
        ):
            return _parse(_Cursor(view, path))
    except OSError as error:
        raise from_os_error(error, f"read {path}") from error


class _Cursor:
    """Reads values one after another, and refuses to read past the end of the file."""

    def __init__(self, view: mmap.mmap, path: Path) -> None:
        self.view, self.path = view, path
        self.position = 0

    def skip(self, count: int) -> int:
        """Moves `count` bytes forward, and returns where they start."""
        start, size = self.position, len(self.view)
        if count > size - start:
            what = f"the header goes on after byte {size:,}, where the file ends"
            raise damaged_gguf(self.path, f"truncated: {what}")
        self.position += count
        return start

    def unpack(self, format: str) -> Any:
        return struct.unpack_from(format, self.view, self.skip(struct.calcsize(format)))

    def number(self, format: str) -> Any:
        return self.unpack(format)[0]

    def text(self) -> str:
        length = self.number("<Q")
        start = self.skip(length)
        try:
            return self.view[start : start + length].decode()
        except UnicodeDecodeError as error:
            what = f"a text in the header is not UTF-8 (byte {start:,})"
            raise damaged_gguf(self.path, what) from error

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self._array()
        raise damaged_gguf(self.path, f"the header has a value of the unknown kind {kind}")

    def _array(self) -> Any:
        kind, length = self.unpack("<IQ")
        if kind in _SCALARS:
            start = self.skip(length * struct.calcsize(_SCALARS[kind]))
            return list(struct.unpack_from(f"<{length}{_SCALARS[kind][1]}", self.view, start))
        if kind != _STRING:
            what = f"the header has an array of the kind {kind}, which is not read here"
            raise damaged_gguf(self.path, what)
        for _ in range(length):  # a text takes at least eight bytes, so the file's end stops this
            self.skip(self.number("<Q"))
        return StringArray(length)


def _parse(cursor: _Cursor) -> GgufHeader:
    path, size = cursor.path, len(cursor.view)
    if cursor.view[:4] != GGUF_MAGIC:
        raise _not_gguf(path)
    cursor.skip(4)
    version, tensor_count, entry_count = cursor.unpack("<IQQ")
    if version not in _VERSIONS:
        raise OtterError(
            f"{path}: version {version} of the GGUF format is not read here",
            hint="versions 2 and 3 are; llama.cpp's tools write version 3",
        )
    metadata: dict[str, Any] = {}
    entries: dict[str, tuple[int, int]] = {}
    for _ in range(entry_count):
        start = cursor.position
        key = cursor.text()
        if key in metadata:
            raise damaged_gguf(path, f"the header has {quoted(key)} twice")
        metadata[key] = cursor.value(cursor.number("<I"))
        entries[key] = (start, cursor.position)
    tensors = [_parse_tensor(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1):
        raise damaged_gguf(path, f"general.alignment is {alignment!r}")
    data_start = cursor.position + -cursor.position % alignment
    placed = _placed_tensors(tensors, data_start, alignment, size, path)
    return GgufHeader(path, version, metadata, entries, placed, alignment, data_start, size)


def _parse_tensor(cursor: _Cursor) -> GgufTensor:
    """A tensor whose `start` is counted from the start of the data."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    name = cursor.text()
    what = f"tensor {quoted(name)}"
    count = cursor.number("<I")
    if not 0 < count <= _MAX_DIMENSIONS:
        raise damaged_gguf(cursor.path, f"{what} has {count} dimensions")
    # GGUF lists the fastest-moving dimension first, torch lists it last.
    shape = tuple(reversed(cursor.unpack(f"<{count}Q")))
    type_id, start = cursor.unpack("<IQ")
    try:
        kind = GGMLQuantizationType(type_id)
    except ValueError as error:
        raise OtterError(
            f"{cursor.path}: {what} is of type {type_id}, which the installed gguf does not know",
            hint="a newer gguf may, or fetch the model in another quantisation",
        ) from error
    block, block_bytes = GGML_QUANT_SIZES[kind]
    if 0 in shape or shape[-1] % block:
        what += f" has shape {list(shape)}, which {kind.name} cannot store"
        raise damaged_gguf(cursor.path, what)
    return GgufTensor(name, shape, type_id, kind.name, start, prod(shape) // block * block_bytes)


def _placed_tensors(
    tensors: list[GgufTensor], data_start: int, alignment: int, size: int, path: Path
) -> dict[str, GgufTensor]:
    """The tensors by name, in the file's order, with `start` counted from the file's start. Raises
    OtterError where tensors overlap or exceed the file."""
    placed: dict[str, GgufTensor] = {}
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.start):
        what = f"tensor {quoted(tensor.name)}"
        if tensor.name in placed:
            raise damaged_gguf(path, f"{what} is there twice")
        if tensor.start < end or tensor.start % alignment:
            raise damaged_gguf(path, f"{what} lies where it cannot (byte {tensor.start:,})")
        end = tensor.start + tensor.nbytes
        if data_start + end > size:
            what += f" ends at byte {data_start + end:,}, the file at {size:,}"
            raise damaged_gguf(path, f"truncated: {what}")
        placed[tensor.name] = replace(tensor, start=data_start + tensor.start)
    return placed


def _not_gguf(path: Path) -> OtterError:
    return OtterError(
        f"{path} is not a GGUF file: it does not start with the letters GGUF",
        hint="give a .gguf file; a folder with safetensors needs no import",
    )
