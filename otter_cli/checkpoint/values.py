"""What is no number among a checkpoint's values, counted by their bits and piece by piece."""

from typing import NamedTuple

import numpy as np

from otter_cli.checkpoint.dtypes import STORED
from otter_cli.checkpoint.tensor_info import TensorInfo

# The unsigned integer of the same width, and the bits of the exponent in it.
_EXPONENTS = {
    "BF16": ("<u2", 0x7F80),
    "F16": ("<u2", 0x7C00),
    "F32": ("<u4", 0x7F800000),
    "F64": ("<u8", 0x7FF0000000000000),
}
_PIECE_BYTES = 8 * 2**20


class NotFinite(NamedTuple):
    """How many elements of a tensor are NaN, and how many are infinite."""

    nan: int
    infinite: int


def count_not_finite(raw: memoryview, info: TensorInfo) -> NotFinite:
    """Counts in the stored bytes of one tensor; zero for types that are always finite.

    The packed 8-bit floats and smaller, which numpy lacks, are not looked into.
    """
    if info.dtype not in _EXPONENTS:
        return NotFinite(0, 0)
    kind, exponent = _EXPONENTS[info.dtype]
    sign = np.array(1, kind) << np.array(8 * np.dtype(STORED[info.dtype]).itemsize - 1, kind)
    nan = infinite = 0
    for start in range(0, info.nbytes, _PIECE_BYTES):
        # A tensor may lie at any byte of its file; a view of the bits needs no alignment.
        bits = np.frombuffer(raw[start : start + _PIECE_BYTES], kind) & ~sign
        nan += int((bits > exponent).sum())
        infinite += int((bits == exponent).sum())
    return NotFinite(nan, infinite)
