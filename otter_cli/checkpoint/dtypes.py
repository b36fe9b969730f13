"""Element types of safetensors files, and conversion of BF16, F16 and F32 to and from float32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

# numpy takes longer to import than typer and rich together, and headers are read without it.
if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]
else:
    Array = Any

# Bits per element, as the safetensors format names them.
DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip

# What a model computes in.
FLOAT_DTYPES = ("BF16", "F16", "F32", "F64")

# How numpy sees the stored bytes. bfloat16 has no numpy type: its bits do.
NUMPY_DTYPES = {
    "BOOL": "u1", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4",
    "U64": "<u8", "I64": "<i8", "F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8",
    "C64": "<c8",
}  # fmt: skip


def decode(stored: Array, dtype: str) -> Array:
    """Values of stored elements: BF16, F16 and F32 as float32, BOOL as bool, the rest as it is."""
    import numpy as np

    if dtype == "BF16":
        bits = stored.astype(np.uint32)
        bits <<= 16  # in place: a second temporary of this size is what surgery cannot afford
        return bits.view(np.float32)
    if dtype == "BOOL":
        return stored != 0
    return stored.astype(np.float32) if dtype == "F16" else stored


def encode(values: Array, dtype: str) -> Array:
    """What is stored for `values`: narrowed to nearest, ties to even, NaN kept NaN.

    Values beyond float16's range become infinity, as they do in torch. BF16 given as uint16 is
    taken for bits already, so that stored tensors can be passed on unchanged.
    """
    import numpy as np

    if dtype == "BF16" and values.dtype != np.uint16:
        return _to_bfloat16(np.ascontiguousarray(values, np.float32))
    with np.errstate(over="ignore"):
        return values.astype(NUMPY_DTYPES[dtype], copy=False)


def _to_bfloat16(values: Array) -> Array:
    import numpy as np

    bits = values.view(np.uint32)
    # Adding half a unit, less one where the kept part is even, carries into it as rounding wants.
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    # The carry would turn a NaN of all-one bits into a zero.
    quiet = (bits >> 16) | 0x40
    return np.where(np.isnan(values), quiet, rounded).astype("<u2")
