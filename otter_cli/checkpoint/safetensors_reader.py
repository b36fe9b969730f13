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
from otter_cli.core.errors import OtterError, closest, from_os_error
from otter_cli.core.strict_files import (
    MAX_JSON_BYTES,
    is_printable,
    parse_json_object,
    quoted,
    read_json_object,
    regular_size,
    resolve_inside,
)

BROKEN_HEADER_HINT = "the header is wrong: write the file again with the safetensors library"

_MAX_RANK = 32  # what every numpy release can shape
_MAX_COUNT = 2**56  # no product of sizes below it overflows anywhere


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor's entry; `start` and `end` count bytes from the header's `data_start`."""

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


def parse_tensor_entry(name: str, entry: Any, path: Path) -> TensorInfo:
    """The header's `entry` for `name`; OtterError for one that makes no sense by itself."""
    where = f"{path}: tensor {quoted(name)}"
    if not is_printable(name):
        raise OtterError(
            f"{where}: empty name or control characters in it", hint=BROKEN_HEADER_HINT
        )
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise OtterError(
            f"{where}: needs dtype, shape and data_offsets, no more", hint=BROKEN_HEADER_HINT
        )
    dtype = _parse_dtype(entry["dtype"], where)
    shape = _parse_shape(entry["shape"], where)
    offsets = entry["data_offsets"]
    if not (_is_list_of_sizes(offsets) and len(offsets) == 2 and offsets[0] <= offsets[1]):
        raise OtterError(
            f"{where}: data_offsets are not two rising byte counts", hint=BROKEN_HEADER_HINT
        )
    info = TensorInfo(name, dtype, shape, offsets[0], offsets[1])
    if info.count * DTYPE_BITS[dtype] != 8 * info.nbytes:
        raise OtterError(
            f"{where}: {dtype} of shape {list(shape)} does not take {info.nbytes:,} bytes",
            hint=BROKEN_HEADER_HINT,
        )
    return info


def _parse_dtype(value: Any, where: str) -> str:
    if isinstance(value, str) and value in DTYPE_BITS:
        return value
    near = closest(value, DTYPE_BITS) if isinstance(value, str) and len(value) < 40 else None
    hint = f"did you mean {near}?" if near else f"known: {', '.join(DTYPE_BITS)}"
    raise OtterError(f"{where}: unknown dtype {quoted(str(value))}", hint=hint)


def _parse_shape(value: Any, where: str) -> tuple[int, ...]:
    if not _is_list_of_sizes(value):
        raise OtterError(f"{where}: the shape is not a list of sizes", hint=BROKEN_HEADER_HINT)
    # Zeros are left out: [0, 2**62, 2**62] holds nothing, and still overflows where it is used.
    if len(value) > _MAX_RANK or prod(size for size in value if size) > _MAX_COUNT:
        raise OtterError(f"{where}: absurd shape of {len(value)} sizes", hint=BROKEN_HEADER_HINT)
    return tuple(value)


def _is_list_of_sizes(value: Any) -> bool:
    # `type`, because JSON's true is an int to isinstance.
    return isinstance(value, list) and all(
        type(item) is int and 0 <= item < 2**63 for item in value
    )


_DAMAGED_FILE_HINT = "the file is damaged or was cut off: fetch it again"


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """What a file says of itself; `size` is the whole file's in bytes, `sha256` the header's."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    data_start: int
    size: int
    sha256: str


def read_header(path: str | Path) -> SafetensorsHeader:
    """The header of `path`; OtterError for a file that is not sound from end to end."""
    path = Path(path)
    try:
        text, size = _read_header_text(path)
    except OSError as error:
        raise from_os_error(error, f"read {path}") from error
    fields = parse_json_object(text, f"{path}: header")
    metadata = _check_metadata(fields.pop("__metadata__", {}), path)
    tensors = {name: parse_tensor_entry(name, entry, path) for name, entry in fields.items()}
    _check_layout(list(tensors.values()), size - 8 - len(text), path)
    return SafetensorsHeader(tensors, metadata, 8 + len(text), size, sha256_bytes(text))


def _read_header_text(path: Path) -> tuple[bytes, int]:
    """The header's JSON text and the file's size, after the lengths are known to fit."""
    size = regular_size(path)
    if size < 8:
        raise OtterError(f"{path}: {size} bytes is no safetensors file", hint=_DAMAGED_FILE_HINT)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            raise OtterError(
                f"{path}: the header claims {length:,} bytes, the file has {size:,}",
                hint=_DAMAGED_FILE_HINT,
            )
        if length > MAX_JSON_BYTES:
            raise OtterError(
                f"{path}: a header of {length:,} bytes is over the format's limit of "
                f"{MAX_JSON_BYTES:,}",
                hint=BROKEN_HEADER_HINT,
            )
        # Zeros by the gigabyte cost a sparse file nothing: look before reading them all.
        if file.read(1) != b"{":
            raise OtterError(f"{path}: the header is not a JSON object", hint=_DAMAGED_FILE_HINT)
        file.seek(8)
        return file.read(length), size


def _check_metadata(value: Any, path: Path) -> dict[str, str]:
    if isinstance(value, dict) and all(isinstance(text, str) for text in value.values()):
        return value
    raise OtterError(f"{path}: __metadata__ is not a table of texts", hint=BROKEN_HEADER_HINT)


def _check_layout(tensors: list[TensorInfo], data_bytes: int, path: Path) -> None:
    """By offset, each tensor starts where the one before ends, and the last ends the file."""
    reached = 0
    for info in sorted(tensors, key=lambda info: (info.start, info.end)):
        if info.start != reached:
            kind = "overlaps the one before" if info.start < reached else "leaves a gap before it"
            raise OtterError(
                f"{path}: tensor {quoted(info.name)} {kind} (byte {info.start:,}, not {reached:,})",
                hint=BROKEN_HEADER_HINT,
            )
        reached = info.end
    if reached > data_bytes:
        raise OtterError(
            f"{path}: truncated: the tensors need {reached:,} bytes, {data_bytes:,} are there",
            hint=_DAMAGED_FILE_HINT,
        )
    if reached < data_bytes:
        raise OtterError(
            f"{path}: {data_bytes - reached:,} bytes at the end belong to no tensor",
            hint=BROKEN_HEADER_HINT,
        )


class TensorFile:
    """The tensors of `path`, by name; the header is checked when it is opened."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.header = read_header(self.path)

    def read_raw(self, name: str) -> memoryview:
        """The stored bytes, as a read-only view of the map."""
        info = self.header.tensors[name]
        start = self.header.data_start + info.start
        return memoryview(self._map)[start : start + info.nbytes]

    def read(self, name: str, *, rows: Array | None = None, columns: Array | None = None) -> Array:
        """Values, as float32 where stored as BF16, F16 or F32; possibly a read-only view.

        `rows` index the first axis and `columns` the last; nothing else is copied or converted.
        OtterError for the packed float types that numpy lacks.
        """
        import numpy as np

        info = self.header.tensors[name]
        if info.dtype not in NUMPY_DTYPES:
            raise OtterError(
                f"{self.path}: {name} is stored as {info.dtype}, which cannot be converted here",
                hint="use the model's bf16, fp16 or fp32 checkpoint",
            )
        stored: Array = np.frombuffer(self.read_raw(name), NUMPY_DTYPES[info.dtype]).reshape(
            info.shape
        )
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
                    raise OtterError(
                        f"{self.path} changed while it was being read",
                        hint="wait until whatever writes it is done",
                    )
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise from_os_error(error, f"read {self.path}") from error


_BROKEN_INDEX_HINT = "fetch the folder again, or save the model again with its index"


class ShardedTensors:
    """The tensors of `files`, found by name; each tensor is in exactly one of them."""

    def __init__(self, files: dict[str, TensorFile]) -> None:
        self.files = files
        self.tensors: dict[str, TensorInfo] = {}
        self.file_of: dict[str, str] = {}
        for file, content in files.items():
            for name, info in content.header.tensors.items():
                if name in self.file_of:
                    raise OtterError(
                        f"{content.path.parent}: tensor {quoted(name)} is in {self.file_of[name]} "
                        f"and in {file}",
                        hint=_BROKEN_INDEX_HINT,
                    )
                self.tensors[name] = info
                self.file_of[name] = file

    @classmethod
    def open(cls, folder: Path, stem: str) -> "ShardedTensors":
        """`stem`.safetensors, or the shards of `stem`.safetensors.index.json, in `folder`."""
        single = f"{stem}.safetensors"
        if (folder / single).exists():
            resolve_inside(folder, single)
            return cls({single: TensorFile(folder / single)})
        index = folder / f"{single}.index.json"
        if not index.exists():
            raise OtterError(
                f"{folder} has no {single}", hint="the folder is incomplete: fetch it again"
            )
        placed = read_shard_index(index)
        shards = sorted(set(placed.values()))
        for shard in shards:
            resolve_inside(folder, shard)
        weights = cls({shard: TensorFile(folder / shard) for shard in shards})
        _check_index(placed, weights.file_of, index)
        return weights

    def read(self, name: str, *, rows: Array | None = None, columns: Array | None = None) -> Array:
        """See TensorFile.read."""
        return self.files[self.file_of[name]].read(name, rows=rows, columns=columns)

    def read_raw(self, name: str) -> memoryview:
        """See TensorFile.read_raw."""
        return self.files[self.file_of[name]].read_raw(name)


def read_shard_index(path: Path) -> dict[str, str]:
    """The index's table from tensor names to shard names."""
    placed: Any = read_json_object(path).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise OtterError(f"{path}: has no weight_map", hint=_BROKEN_INDEX_HINT)
    for name, shard in placed.items():
        if not is_printable(name):
            raise OtterError(f"{path}: {quoted(name)} is no tensor name", hint=_BROKEN_INDEX_HINT)
        if not isinstance(shard, str) or not shard.endswith(".safetensors"):
            raise OtterError(
                f"{path}: tensor {quoted(name)} is said to be in {quoted(str(shard))}, "
                "which is no safetensors file",
                hint=_BROKEN_INDEX_HINT,
            )
    return placed


def _check_index(placed: dict[str, str], found: dict[str, str], index: Path) -> None:
    for name, shard in placed.items():
        if found.get(name) != shard:
            raise OtterError(
                f"{index}: tensor {quoted(name)} is not in {quoted(shard)}", hint=_BROKEN_INDEX_HINT
            )
    for name, shard in found.items():
        if name not in placed:
            raise OtterError(
                f"{index}: lacks tensor {quoted(name)}, which is in {quoted(shard)}",
                hint=_BROKEN_INDEX_HINT,
            )
