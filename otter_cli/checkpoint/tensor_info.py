"""One tensor's entry in a safetensors header."""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from otter_cli.checkpoint.dtypes import BITS
from otter_cli.checkpoint.strict_json import is_plain, shown
from otter_cli.core.errors import OtterError
from otter_cli.core.suggest import closest

BROKEN = "the header is wrong: write the file again with the safetensors library"

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


def parse_entry(name: str, entry: Any, path: Path) -> TensorInfo:
    """The header's `entry` for `name`; OtterError for one that makes no sense by itself."""
    where = f"{path}: tensor {shown(name)}"
    if not is_plain(name):
        raise OtterError(f"{where}: empty name or control characters in it", hint=BROKEN)
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise OtterError(f"{where}: needs dtype, shape and data_offsets, no more", hint=BROKEN)
    dtype = _dtype(entry["dtype"], where)
    shape = _shape(entry["shape"], where)
    offsets = entry["data_offsets"]
    if not (_are_sizes(offsets) and len(offsets) == 2 and offsets[0] <= offsets[1]):
        raise OtterError(f"{where}: data_offsets are not two rising byte counts", hint=BROKEN)
    info = TensorInfo(name, dtype, shape, offsets[0], offsets[1])
    if info.count * BITS[dtype] != 8 * info.nbytes:
        raise OtterError(
            f"{where}: {dtype} of shape {list(shape)} does not take {info.nbytes:,} bytes",
            hint=BROKEN,
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
        raise OtterError(f"{where}: the shape is not a list of sizes", hint=BROKEN)
    # Zeros are left out: [0, 2**62, 2**62] holds nothing, and still overflows where it is used.
    if len(value) > _MAX_RANK or prod(size for size in value if size) > _MAX_COUNT:
        raise OtterError(f"{where}: absurd shape of {len(value)} sizes", hint=BROKEN)
    return tuple(value)


def _are_sizes(value: Any) -> bool:
    # `type`, because JSON's true is an int to isinstance.
    return isinstance(value, list) and all(
        type(item) is int and 0 <= item < 2**63 for item in value
    )
