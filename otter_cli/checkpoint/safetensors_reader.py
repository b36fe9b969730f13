"""Safetensors files, checked strictly and read through a memory map.

A header that passes the checks describes the whole file: every byte belongs to exactly one tensor.
`TensorFile` is one file. `ShardedTensors` is one file, or several shards and their index.
"""

import mmap
import os
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from otter_cli.checkpoint.dtypes import DTYPE_BITS, NUMPY_DTYPES, Array, decode
from otter_cli.core.digests import sha256_bytes
from otter_cli.core.errors import OtterError, changed_while_read, closest, from_os_error
from otter_cli.core.strict_files import (
    MAX_SMALL_FILE_BYTES,
    is_printable,
    parse_json_object,
    quoted,
    read_json_object,
    regular_size,
    resolve_inside,
)

_MAX_RANK = 32  # every numpy release supports it
_MAX_COUNT = 2**56  # products of sizes below it do not overflow anywhere


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """The header's entry of a tensor. `start` and `end` are bytes after `data_start`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.start

    @property
    def count(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """The content of a header. `size` is that of the whole file in bytes, `sha256` the header's."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    data_start: int
    size: int
    sha256: str


def read_header(path: str | Path) -> SafetensorsHeader:
    """The header of `path`. Raises OtterError unless the file is sound from end to end."""
    path = Path(path)
    try:
        text, size = _read_header_text(path)
    except OSError as error:
        raise from_os_error(error, f"read {path}") from error
    fields = parse_json_object(text, f"{path}: header")
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _broken(path, "__metadata__ is not a table of texts")
    tensors = {name: _parse_tensor_entry(name, entry, path) for name, entry in fields.items()}
    _check_layout(list(tensors.values()), size - 8 - len(text), path)
    return SafetensorsHeader(tensors, metadata, 8 + len(text), size, sha256_bytes(text))


def _broken(where: str | Path, what: str) -> OtterError:
    return OtterError(
        f"{where}: {what}",
        hint="the header is wrong: write the file again with the safetensors library",
    )


def _cut_off(path: Path, what: str) -> OtterError:
    return OtterError(f"{path}: {what}", hint="the file is damaged or was cut off: fetch it again")


def _read_header_text(path: Path) -> tuple[bytes, int]:
    """The header's JSON text and the file's size, after a check that the lengths fit."""
    size = regular_size(path)
    if size < 8:
        raise _cut_off(path, f"{size} bytes is no safetensors file")
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            raise _cut_off(path, f"the header claims {length:,} bytes, the file has {size:,}")
        if length > MAX_SMALL_FILE_BYTES:
            limit = f"the format's limit of {MAX_SMALL_FILE_BYTES:,}"
            raise _broken(path, f"a header of {length:,} bytes is over {limit}")
        # A sparse file may hold gigabytes of zeros, so one byte is read before the rest.
        if file.read(1) != b"{":
            raise _cut_off(path, "the header is not a JSON object")
        file.seek(8)
        return file.read(length), size


def _parse_tensor_entry(name: str, entry: Any, path: Path) -> TensorInfo:
    """Checks everything in an entry that does not depend on other entries."""
    where = f"{path}: tensor {quoted(name)}"
    if not is_printable(name):
        raise _broken(where, "empty name or control characters in it")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _broken(where, "needs dtype, shape and data_offsets, no more")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        near = closest(dtype, DTYPE_BITS) if isinstance(dtype, str) and len(dtype) < 40 else None
        hint = f"did you mean {near}?" if near else f"known: {', '.join(DTYPE_BITS)}"
        raise OtterError(f"{where}: unknown dtype {quoted(str(dtype))}", hint=hint)
    if not _is_list_of_sizes(shape):
        raise _broken(where, "the shape is not a list of sizes")
    # Without zeros: [0, 2**62, 2**62] is empty, but its product overflows elsewhere.
    if len(shape) > _MAX_RANK or prod(size for size in shape if size) > _MAX_COUNT:
        raise _broken(where, f"absurd shape of {len(shape)} sizes")
    if not (_is_list_of_sizes(offsets) and len(offsets) == 2 and offsets[0] <= offsets[1]):
        raise _broken(where, "data_offsets are not two rising byte counts")
    info = TensorInfo(name, dtype, tuple(shape), *offsets)
    if info.count * DTYPE_BITS[dtype] != 8 * info.nbytes:
        raise _broken(where, f"{dtype} of shape {shape} does not take {info.nbytes:,} bytes")
    return info


def _is_list_of_sizes(value: Any) -> bool:
    # Not isinstance, because JSON's true is an int to it.
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _check_layout(tensors: list[TensorInfo], data_bytes: int, path: Path) -> None:
    """By offset, each tensor starts where the previous ends, and the last ends the file."""
    end = 0
    for info in sorted(tensors, key=lambda info: (info.start, info.end)):
        if info.start != end:
            fault = "overlaps the one before" if info.start < end else "leaves a gap before it"
            place = f"(byte {info.start:,}, not {end:,})"
            raise _broken(path, f"tensor {quoted(info.name)} {fault} {place}")
        end = info.end
    if end > data_bytes:
        what = f"the tensors need {end:,} bytes, {data_bytes:,} are there"
        raise _cut_off(path, f"truncated: {what}")
    if end < data_bytes:
        raise _broken(path, f"{data_bytes - end:,} bytes at the end belong to no tensor")


class TensorFile:
    """The tensors of one file, by name. Opening it checks the header."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.header = read_header(self.path)

    def read_raw(self, name: str) -> memoryview:
        """The stored bytes, as a read-only view of the memory map."""
        info = self.header.tensors[name]
        start = self.header.data_start + info.start
        return memoryview(self._map)[start : start + info.nbytes]

    def read(self, name: str, *, rows: Array | None = None, columns: Array | None = None) -> Array:
        """The values: float32 where stored as BF16, F16 or F32. They may be a read-only view.

        `rows` index the first axis and `columns` the last. Nothing else is copied or converted.
        Raises OtterError for packed float types, which numpy lacks.
        """
        import numpy as np

        info = self.header.tensors[name]
        if info.dtype not in NUMPY_DTYPES:
            raise OtterError(
                f"{self.path}: {name} is stored as {info.dtype}, which cannot be converted here",
                hint="use the model's bf16, fp16 or fp32 checkpoint",
            )
        stored: Array = np.frombuffer(self.read_raw(name), NUMPY_DTYPES[info.dtype])
        stored = stored.reshape(info.shape)
        if rows is not None:
            stored = stored[rows]
        if columns is not None:
            stored = stored[..., columns]
        return np.require(decode(stored, info.dtype), requirements="A")

    @cached_property
    def _map(self) -> mmap.mmap:
        try:
            with open(self.path, "rb") as file:
                if os.fstat(file.fileno()).st_size != self.header.size:
                    raise changed_while_read(self.path)
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise from_os_error(error, f"read {self.path}") from error


class ShardedTensors:
    """The tensors of several files by name. Each tensor is in exactly one file."""

    def __init__(self, files: dict[str, TensorFile]) -> None:
        self.files = files
        self.tensors: dict[str, TensorInfo] = {}
        self.file_of: dict[str, str] = {}
        for file, content in files.items():
            for name, info in content.header.tensors.items():
                if name in self.file_of:
                    both = f"{self.file_of[name]} and in {file}"
                    raise _bad_index(content.path.parent, f"tensor {quoted(name)} is in {both}")
                self.tensors[name] = info
                self.file_of[name] = file

    @classmethod
    def open(cls, folder: Path, stem: str) -> "ShardedTensors":
        """`stem`.safetensors in `folder`, or the shards of `stem`.safetensors.index.json."""
        single = f"{stem}.safetensors"
        if (folder / single).exists():
            resolve_inside(folder, single)
            return cls({single: TensorFile(folder / single)})
        index = folder / f"{single}.index.json"
        if not index.exists():
            raise OtterError(
                f"{folder} has no {single}", hint="the folder is incomplete: fetch it again"
            )
        shard_of = read_shard_index(index)
        shards = sorted(set(shard_of.values()))
        for shard in shards:
            resolve_inside(folder, shard)
        weights = cls({shard: TensorFile(folder / shard) for shard in shards})
        for name, shard in shard_of.items():
            if weights.file_of.get(name) != shard:
                raise _bad_index(index, f"tensor {quoted(name)} is not in {quoted(shard)}")
        for name, shard in weights.file_of.items():
            if name not in shard_of:
                what = f"lacks tensor {quoted(name)}, which is in {quoted(shard)}"
                raise _bad_index(index, what)
        return weights

    def read(self, name: str, *, rows: Array | None = None, columns: Array | None = None) -> Array:
        """See TensorFile.read."""
        return self.files[self.file_of[name]].read(name, rows=rows, columns=columns)

    def read_raw(self, name: str) -> memoryview:
        """See TensorFile.read_raw."""
        return self.files[self.file_of[name]].read_raw(name)


def read_shard_index(path: Path) -> dict[str, str]:
    """The index's map from tensor names to shards."""
    shard_of: Any = read_json_object(path).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise _bad_index(path, "has no weight_map")
    for name, shard in shard_of.items():
        if not is_printable(name):
            raise _bad_index(path, f"{quoted(name)} is no tensor name")
        if not isinstance(shard, str) or not shard.endswith(".safetensors"):
            what = f"is said to be in {quoted(str(shard))}, which is no safetensors file"
            raise _bad_index(path, f"tensor {quoted(name)} {what}")
    return shard_of


def _bad_index(where: Path, what: str) -> OtterError:
    return OtterError(
        f"{where}: {what}", hint="fetch the folder again, or save the model again with its index"
    )
