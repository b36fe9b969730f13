"""Counts of NaN and infinity in stored tensors, taken from their bits, piece by piece."""

from typing import NamedTuple

import numpy as np

from otter_cli.checkpoint.dtypes import NUMPY_DTYPES
from otter_cli.checkpoint.safetensors_reader import TensorInfo

# The unsigned integer of the same width, and the bits of the exponent in it.
_EXPONENT_BITS = {
    "BF16": ("<u2", 0x7F80),
    "F16": ("<u2", 0x7C00),
    "F32": ("<u4", 0x7F800000),
    "F64": ("<u8", 0x7FF0000000000000),
}
_PIECE_BYTES = 8 * 2**20


class NonFiniteCount(NamedTuple):
    """How many elements of a tensor are NaN, and how many are infinite."""

    nan: int
    infinite: int


def count_non_finite(raw: memoryview, info: TensorInfo) -> NonFiniteCount:
    """Counts in the stored bytes of one tensor; zero for types that are always finite.

    The packed 8-bit floats and smaller, which numpy lacks, are not looked into.
    """
    if info.dtype not in _EXPONENT_BITS:
        return NonFiniteCount(0, 0)
    kind, exponent = _EXPONENT_BITS[info.dtype]
    sign = np.array(1, kind) << np.array(8 * np.dtype(NUMPY_DTYPES[info.dtype]).itemsize - 1, kind)
    nan = infinite = 0
    for start in range(0, info.nbytes, _PIECE_BYTES):
        # A tensor may lie at any byte of its file; a view of the bits needs no alignment.
        bits = np.frombuffer(raw[start : start + _PIECE_BYTES], kind) & ~sign
        nan += int((bits > exponent).sum())
        infinite += int((bits == exponent).sum())
    return NonFiniteCount(nan, infinite)
