"""The C structures of stream.cpp, field by field, and the numbers that it gives to dtypes.

This file repeats stream.cpp. `abi_difference` compares the two before the library is used."""

from __future__ import annotations

import ctypes
from typing import Any

# The dtypes that native code reads, by torch's names, in the order of `Dtype` in numbers.h.
NATIVE_DTYPES = ("float32", "bfloat16", "float16")
_INTEGER_FIELDS = """batch tokens layers hidden in_heads in_out in_units in_down heads kv_heads
head_dim units own_kv slots first_slot mask mask_of_batch mask_of_token turn_of_batch
base_dtype own_dtype"""
MASK_NONE, MASK_CAUSAL, MASK_ADDITIVE, MASK_BOOLEAN = range(4)
WEIGHTS_PER_LAYER = 18  # pointers in LayerWeights
INPUTS_PER_LAYER = 4  # the first pointers in LayerInputs: the base's activations
POINTERS_OF_HEADS = 11  # the other numbers in LayerInputs, which only heads need
_ABI_VERSION = 2


class StreamCall(ctypes.Structure):
    """StreamCall of stream.cpp, field by field. Fields that are not given are zero."""

    _fields_ = [
        *[(name, ctypes.c_int64) for name in _INTEGER_FIELDS.split()],
        ("eps", ctypes.c_double),
        ("scale", ctypes.c_double),
        ("pages", ctypes.c_void_p),
    ]


class PagedCache(ctypes.Structure):
    """PagedCache of stream.cpp. It does not keep alive what it points at."""

    _fields_ = [
        *[
            (name, ctypes.c_int64)
            for name in ["size", "half", "of_block", "of_head", "of_sequence"]
        ],
        *[(name, ctypes.c_void_p) for name in ["table", "sequence", "seen"]],
    ]


def abi_difference(library: Any) -> str:
    """How the C structures differ from those of this file; "" if they are the same."""
    numbers = (ctypes.c_int64 * 5)()
    library.otter_abi(numbers)
    pointer = ctypes.sizeof(ctypes.c_void_p)
    expected = [
        _ABI_VERSION,
        ctypes.sizeof(StreamCall),
        WEIGHTS_PER_LAYER * pointer,
        (INPUTS_PER_LAYER + POINTERS_OF_HEADS) * pointer,
        ctypes.sizeof(PagedCache),
    ]
    if [*numbers] == expected:
        return ""
    return f"the native code has version and sizes {[*numbers]}, not {expected}"
