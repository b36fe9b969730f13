"""Headers of safetensors files, checked in full before anything is read by them.

A header that passes describes the whole file: every byte belongs to exactly one tensor.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from otter_cli.checkpoint.strict_json import MAX_BYTES, parse_object, regular_size, shown
from otter_cli.checkpoint.tensor_info import BROKEN, TensorInfo, parse_entry
from otter_cli.core.digests import sha256_bytes
from otter_cli.core.errors import OtterError, from_os_error

_DAMAGED = "the file is damaged or was cut off: fetch it again"


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
    tensors = {name: parse_entry(name, entry, path) for name, entry in fields.items()}
    _check_layout(list(tensors.values()), size - 8 - len(text), path)
    return Header(tensors, metadata, 8 + len(text), size, sha256_bytes(text))


def _read_text(path: Path) -> tuple[bytes, int]:
    """The header's JSON text and the file's size, after the lengths are known to fit."""
    size = regular_size(path)
    if size < 8:
        raise OtterError(f"{path}: {size} bytes is no safetensors file", hint=_DAMAGED)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            raise OtterError(
                f"{path}: the header claims {length:,} bytes, the file has {size:,}", hint=_DAMAGED
            )
        if length > MAX_BYTES:
            raise OtterError(
                f"{path}: a header of {length:,} bytes is over the format's limit of {MAX_BYTES:,}",
                hint=BROKEN,
            )
        # Zeros by the gigabyte cost a sparse file nothing: look before reading them all.
        if file.read(1) != b"{":
            raise OtterError(f"{path}: the header is not a JSON object", hint=_DAMAGED)
        file.seek(8)
        return file.read(length), size


def _metadata(value: Any, path: Path) -> dict[str, str]:
    if isinstance(value, dict) and all(isinstance(text, str) for text in value.values()):
        return value
    raise OtterError(f"{path}: __metadata__ is not a table of texts", hint=BROKEN)


def _check_layout(tensors: list[TensorInfo], data_bytes: int, path: Path) -> None:
    """By offset, each tensor starts where the one before ends, and the last ends the file."""
    reached = 0
    for info in sorted(tensors, key=lambda info: (info.start, info.end)):
        if info.start != reached:
            kind = "overlaps the one before" if info.start < reached else "leaves a gap before it"
            raise OtterError(
                f"{path}: tensor {shown(info.name)} {kind} (byte {info.start:,}, not {reached:,})",
                hint=BROKEN,
            )
        reached = info.end
    if reached > data_bytes:
        raise OtterError(
            f"{path}: truncated: the tensors need {reached:,} bytes, {data_bytes:,} are there",
            hint=_DAMAGED,
        )
    if reached < data_bytes:
        raise OtterError(
            f"{path}: {data_bytes - reached:,} bytes at the end belong to no tensor", hint=BROKEN
        )
