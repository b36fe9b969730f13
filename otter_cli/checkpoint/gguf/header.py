"""Headers of GGUF files, checked in full before any library reads the file.

The reader of the gguf package trusts the lengths in a file, so a damaged file can make it loop for
hours. Here every length and every offset must lie inside the file.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from otter_cli.core.errors import OtterError, from_os_error
from otter_cli.core.strict_files import quoted, regular_size

GGUF_MAGIC = b"GGUF"
DAMAGED_GGUF_HINT = "the file is damaged or was cut off: fetch it again"

_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 4
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q",
            11: "<q", 12: "<d"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor: its shape in torch's order, its type, and where its bytes lie in the file."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    type_name: str
    start: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class StringArray:
    """An array of texts, such as the vocabulary: only its length is kept."""

    length: int


@dataclass(frozen=True)
class GgufHeader:
    """`entries` holds the stored bytes of every metadata entry, by key."""

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


def looks_like_gguf(path: Path) -> bool:
    """Whether `path` is a file that is named like a GGUF file or starts like one."""
    if not path.is_file():
        return False
    if path.name.endswith(".gguf") or ".gguf.part" in path.name:
        return True
    try:
        with open(path, "rb") as file:
            return file.read(4) == GGUF_MAGIC
    except OSError:
        return False


def read_gguf_header(path: Path) -> GgufHeader:
    """The header of `path`; OtterError for whatever is not a sound GGUF file from end to end."""
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
    """Reads values one after another, and refuses to go past the end of the file."""

    def __init__(self, view: mmap.mmap, path: Path) -> None:
        self.view, self.path = view, path
        self.at = 0

    def take(self, count: int) -> int:
        """Moves `count` bytes on; the place where they start."""
        start = self.at
        if count > len(self.view) - start:
            raise OtterError(
                f"{self.path}: truncated: the header goes on after byte {len(self.view):,}, "
                "where the file ends",
                hint=DAMAGED_GGUF_HINT,
            )
        self.at += count
        return start

    def unpack(self, format: str) -> Any:
        return struct.unpack_from(format, self.view, self.take(struct.calcsize(format)))

    def number(self, format: str) -> Any:
        return self.unpack(format)[0]

    def text(self) -> str:
        length = self.number("<Q")
        start = self.take(length)
        try:
            return self.view[start : start + length].decode()
        except UnicodeDecodeError as error:
            raise OtterError(
                f"{self.path}: a text in the header is not UTF-8 (byte {start:,})",
                hint=DAMAGED_GGUF_HINT,
            ) from error

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self._array()
        raise OtterError(
            f"{self.path}: the header has a value of the unknown kind {kind}",
            hint=DAMAGED_GGUF_HINT,
        )

    def _array(self) -> Any:
        kind, length = self.unpack("<IQ")
        if kind in _SCALARS:
            width = struct.calcsize(_SCALARS[kind])
            start = self.take(length * width)
            return list(struct.unpack_from(f"<{length}{_SCALARS[kind][1]}", self.view, start))
        if kind != _STRING:
            raise OtterError(
                f"{self.path}: the header has an array of the kind {kind}, which is not read here",
                hint=DAMAGED_GGUF_HINT,
            )
        for _ in range(length):  # every text takes eight bytes or more, so the file's end ends this
            self.take(self.number("<Q"))
        return StringArray(length)


def _parse(cursor: _Cursor) -> GgufHeader:
    path = cursor.path
    if cursor.view[:4] != GGUF_MAGIC:
        raise _not_gguf(path)
    cursor.take(4)
    version, tensor_count, entry_count = cursor.unpack("<IQQ")
    if version not in _VERSIONS:
        raise OtterError(
            f"{path}: version {version} of the GGUF format is not read here",
            hint="versions 2 and 3 are; llama.cpp's tools write version 3",
        )
    metadata: dict[str, Any] = {}
    entries: dict[str, tuple[int, int]] = {}
    for _ in range(entry_count):
        start = cursor.at
        key = cursor.text()
        if key in metadata:
            raise OtterError(f"{path}: the header has {quoted(key)} twice", hint=DAMAGED_GGUF_HINT)
        metadata[key] = cursor.value(cursor.number("<I"))
        entries[key] = (start, cursor.at)
    tensors = [_parse_tensor(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1):
        raise OtterError(f"{path}: general.alignment is {alignment!r}", hint=DAMAGED_GGUF_HINT)
    data_start = cursor.at + -cursor.at % alignment
    placed = _placed_tensors(tensors, data_start, alignment, len(cursor.view), path)
    size = len(cursor.view)
    return GgufHeader(path, version, metadata, entries, placed, alignment, data_start, size)


def _parse_tensor(cursor: _Cursor) -> GgufTensor:
    """A tensor whose start is still counted from the start of the data."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    name = cursor.text()
    where = f"{cursor.path}: tensor {quoted(name)}"
    count = cursor.number("<I")
    if not 0 < count <= _MAX_DIMENSIONS:
        raise OtterError(f"{where} has {count} dimensions", hint=DAMAGED_GGUF_HINT)
    # GGUF gives the fastest-moving dimension first, torch gives it last.
    shape = tuple(reversed(cursor.unpack(f"<{count}Q")))
    type_id, start = cursor.unpack("<IQ")
    try:
        kind = GGMLQuantizationType(type_id)
    except ValueError as error:
        raise OtterError(
            f"{where} is of type {type_id}, which the installed gguf does not know",
            hint="a newer gguf may, or fetch the model in another quantisation",
        ) from error
    block, block_bytes = GGML_QUANT_SIZES[kind]
    if 0 in shape or shape[-1] % block:
        raise OtterError(
            f"{where} has shape {list(shape)}, which {kind.name} cannot store",
            hint=DAMAGED_GGUF_HINT,
        )
    return GgufTensor(name, shape, type_id, kind.name, start, prod(shape) // block * block_bytes)


def _placed_tensors(
    tensors: list[GgufTensor], data_start: int, alignment: int, size: int, path: Path
) -> dict[str, GgufTensor]:
    """The tensors by name, in the file's order, after their places are known to be sound."""
    placed: dict[str, GgufTensor] = {}
    reached = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.start):
        where = f"{path}: tensor {quoted(tensor.name)}"
        if tensor.name in placed:
            raise OtterError(f"{where} is there twice", hint=DAMAGED_GGUF_HINT)
        if tensor.start < reached or tensor.start % alignment:
            raise OtterError(
                f"{where} lies where it cannot (byte {tensor.start:,})", hint=DAMAGED_GGUF_HINT
            )
        reached = tensor.start + tensor.nbytes
        start = data_start + tensor.start
        if start + tensor.nbytes > size:
            raise OtterError(
                f"{path}: truncated: tensor {quoted(tensor.name)} ends at byte "
                f"{start + tensor.nbytes:,}, the file at {size:,}",
                hint=DAMAGED_GGUF_HINT,
            )
        placed[tensor.name] = GgufTensor(
            tensor.name, tensor.shape, tensor.type_id, tensor.type_name, start, tensor.nbytes
        )
    return placed


def _not_gguf(path: Path) -> OtterError:
    return OtterError(
        f"{path} is not a GGUF file: it does not start with the letters GGUF",
        hint="give a .gguf file; a folder with safetensors needs no import",
    )


def refuse_gguf(path: Path) -> None:
    """OtterError, with the line to type, when `path` is a GGUF file or a folder of nothing else."""
    if path.is_dir():
        if (path / "config.json").exists():
            return
        files = sorted(file for file in path.iterdir() if looks_like_gguf(file))
        if not files:
            return
        source = files[0]
        what = f"{path} holds a GGUF file and no checkpoint"
    elif looks_like_gguf(path):
        source = path
        what = f"{path} is a GGUF file, not a checkpoint folder"
    else:
        return
    raise OtterError(
        what, hint=f"import it first: otter import {source} {_suggested_folder(source)}"
    )


def _suggested_folder(source: Path) -> str:
    """A name for the imported folder: the file's, without what says how it is stored."""
    return source.name.partition(".gguf")[0].partition("-00")[0] + "-imported"
