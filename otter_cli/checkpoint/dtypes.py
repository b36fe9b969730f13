"""Element types of safetensors files: their sizes, their values, and counts of NaN and infinity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

# numpy is imported in the functions: its import takes longer than those of typer and rich together,
# and headers are read without it.
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

# The types that a model may compute in.
FLOAT_DTYPES = ("BF16", "F16", "F32", "F64")

# The numpy type of the stored bytes. numpy lacks bfloat16, so its bits are read as an integer.
NUMPY_DTYPES = {
    "BOOL": "u1", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4",
    "U64": "<u8", "I64": "<i8", "F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8",
    "C64": "<c8",
}  # fmt: skip

# The unsigned integer of the same width, and the exponent's bits in it.
_EXPONENT_BITS = {
    "BF16": ("<u2", 0x7F80), "F16": ("<u2", 0x7C00), "F32": ("<u4", 0x7F800000),
    "F64": ("<u8", 0x7FF0000000000000),
}  # fmt: skip
_PIECE_BYTES = 8 * 2**20


def decode(stored: Array, dtype: str) -> Array:
    """Values of stored elements: BF16, F16 and F32 as float32, BOOL as bool, others as stored."""
    import numpy as np

    if dtype == "BF16":
        bits = stored.astype(np.uint32)
        bits <<= 16  # in place, because surgery has no memory for a second copy
        return bits.view(np.float32)
    if dtype == "BOOL":
        return stored != 0
    return stored.astype(np.float32) if dtype == "F16" else stored


def encode(values: Array, dtype: str) -> Array:
    """The stored elements of `values`, rounded to nearest, ties to even. NaN stays NaN.

    Values beyond float16's range become infinity, as in torch. A uint16 array for BF16 is taken as
    bits, so stored tensors can be passed on unchanged.
    """
    import numpy as np

    if dtype != "BF16" or values.dtype == np.uint16:
        with np.errstate(over="ignore"):
            return values.astype(NUMPY_DTYPES[dtype], copy=False)
    values = np.ascontiguousarray(values, np.float32)
    bits = values.view(np.uint32)
    # Half a unit is added, or one less where the kept part is even. The carry rounds it.
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    # The carry would turn a NaN whose bits are all one into a zero.
    quiet_nan = (bits >> 16) | 0x40
    return np.where(np.isnan(values), quiet_nan, rounded).astype("<u2")


class NonFiniteCount(NamedTuple):
    """How many elements of a tensor are NaN, and how many are infinite."""

    nan: int
    infinite: int


def count_non_finite(raw: memoryview, dtype: str) -> NonFiniteCount:
    """Counts in the stored bytes of one tensor, piece by piece, from the bits.

    Integers are always finite. Packed floats of 8 bits or fewer are not checked. Both count zero.
    """
    import numpy as np

    if dtype not in _EXPONENT_BITS:
        return NonFiniteCount(0, 0)
    kind, exponent = _EXPONENT_BITS[dtype]
    sign = np.array(1, kind) << np.array(DTYPE_BITS[dtype] - 1, kind)
    nan = infinite = 0
    for start in range(0, len(raw), _PIECE_BYTES):
        # A tensor may start at any byte of its file. frombuffer needs no alignment.
        bits = np.frombuffer(raw[start : start + _PIECE_BYTES], kind) & ~sign
        nan += int((bits > exponent).sum())
        infinite += int((bits == exponent).sum())
    return NonFiniteCount(nan, infinite)
