"""Headers of safetensors files, checked in full before anything is read by them.

A header that passes describes the whole file: every byte belongs to exactly one tensor.
"""

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from otter_cli.checkpoint.dtypes import BITS
from otter_cli.checkpoint.strict_json import (
    MAX_BYTES,
    is_plain,
    parse_object,
    regular_size,
    shown,
)
from otter_cli.core.digests import sha256_bytes
from otter_cli.core.errors import OtterError, from_os_error
from otter_cli.core.suggest import closest

_MAX_RANK = 32  # what every numpy release can shape
_MAX_COUNT = 2**56  # no product of sizes below it overflows anywhere

_DAMAGED = "the file is damaged or was cut off: fetch it again"
_BROKEN = "the header is wrong: write the file again with the safetensors library"


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


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself; `size` is the whole file's in bytes, `sha256` the header's."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    data_start: int
    size: int
    sha256: str


def read_header(path: str | Path) -> Header:
    """The header of `path`; OtterError for a file that is not sound from end to end."""
    path = Path(path)
    try:
        text, size = _read_text(path)
    except OSError as error:
        raise from_os_error(error, f"read {path}") from error
    fields = parse_object(text, f"{path}: header")
    metadata = _metadata(fields.pop("__metadata__", {}), path)
    tensors = {name: _tensor(name, entry, path) for name, entry in fields.items()}
    _check_layout(list(tensors.values()), size - 8 - len(text), path)
    return Header(tensors, metadata, 8 + len(text), size, sha256_bytes(text))


def _read_text(path: Path) -> tuple[bytes, int]:
    """The header's JSON text and the file's size, after the lengths are known to fit."""
    size = regular_size(path)
    if size < 8:
        raise OtterError(f"{path}: {size} bytes is no safetensors file", hint=_DAMAGED)
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > size - 8:
            raise OtterError(
                f"{path}: the header claims {length:,} bytes, the file has {size:,}", hint=_DAMAGED
            )
        if length > MAX_BYTES:
            raise OtterError(
                f"{path}: a header of {length:,} bytes is over the format's limit of {MAX_BYTES:,}",
                hint=_BROKEN,
            )
        # Zeros by the gigabyte cost a sparse file nothing: look before reading them all.
        if file.read(1) != b"{":
            raise OtterError(f"{path}: the header is not a JSON object", hint=_DAMAGED)
        file.seek(8)
        return file.read(length), size


def _metadata(value: Any, path: Path) -> dict[str, str]:
    if isinstance(value, dict) and all(isinstance(text, str) for text in value.values()):
        return value
    raise OtterError(f"{path}: __metadata__ is not a table of texts", hint=_BROKEN)


def _tensor(name: str, entry: Any, path: Path) -> TensorInfo:
    where = f"{path}: tensor {shown(name)}"
    if not is_plain(name):
        raise OtterError(f"{where}: empty name or control characters in it", hint=_BROKEN)
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise OtterError(f"{where}: needs dtype, shape and data_offsets, no more", hint=_BROKEN)
    dtype = _dtype(entry["dtype"], where)
    shape = _shape(entry["shape"], where)
    offsets = entry["data_offsets"]
    if not (_are_sizes(offsets) and len(offsets) == 2 and offsets[0] <= offsets[1]):
        raise OtterError(f"{where}: data_offsets are not two rising byte counts", hint=_BROKEN)
    info = TensorInfo(name, dtype, shape, offsets[0], offsets[1])
    if info.count * BITS[dtype] != 8 * info.nbytes:
        raise OtterError(
            f"{where}: {dtype} of shape {list(shape)} does not take {info.nbytes:,} bytes",
            hint=_BROKEN,
        )
    return info


def _dtype(value: Any, where: str) -> str:
    if isinstance(value, str) and value in BITS:
        return value
    near = closest(value, BITS) if isinstance(value, str) and len(value) < 40 else None
    hint = f"did you mean {near}?" if near else f"known: {', '.join(BITS)}"
    raise OtterError(f"{where}: unknown dtype {shown(str(value))}", hint=hint)


def _shape(value: Any, where: str) -> tuple[int, ...]:
    if not _are_sizes(value):
        raise OtterError(f"{where}: the shape is not a list of sizes", hint=_BROKEN)
    # Zeros are left out: [0, 2**62, 2**62] holds nothing, and still overflows where it is used.
    if len(value) > _MAX_RANK or prod(size for size in value if size) > _MAX_COUNT:
        raise OtterError(f"{where}: absurd shape of {len(value)} sizes", hint=_BROKEN)
    return tuple(value)


def _are_sizes(value: Any) -> bool:
    # `type`, because JSON's true is an int to isinstance.
    return isinstance(value, list) and all(
        type(item) is int and 0 <= item < 2**63 for item in value
    )


def _check_layout(tensors: list[TensorInfo], data_bytes: int, path: Path) -> None:
    """By offset, each tensor starts where the one before ends, and the last ends the file."""
    reached = 0
    for info in sorted(tensors, key=lambda info: (info.start, info.end)):
        if info.start != reached:
            kind = "overlaps the one before" if info.start < reached else "leaves a gap before it"
            raise OtterError(
                f"{path}: tensor {shown(info.name)} {kind} (byte {info.start:,}, not {reached:,})",
                hint=_BROKEN,
            )
        reached = info.end
    if reached > data_bytes:
        raise OtterError(
            f"{path}: truncated: the tensors need {reached:,} bytes, {data_bytes:,} are there",
            hint=_DAMAGED,
        )
    if reached < data_bytes:
        raise OtterError(
            f"{path}: {data_bytes - reached:,} bytes at the end belong to no tensor", hint=_BROKEN
        )
