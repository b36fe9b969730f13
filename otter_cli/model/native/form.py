"""What native code is told of an insertion and a call, as structures of stream.cpp."""

from __future__ import annotations

import ctypes

_NUMBERS = """batch tokens layers hidden in_heads in_out in_units in_down heads kv_heads head_dim
units own_kv slots first_slot mask mask_of_batch mask_of_token turn_of_batch half"""
EVERYTHING, CAUSAL, ADDED, ALLOWED = range(4)
WEIGHTS_OF_LAYER = 18  # numbers of a layer in Weights
TAPS_OF_HEADS = 11  # of those in Taps that heads alone need


class Form(ctypes.Structure):
    """Sizes; all that is not given is zero."""

    _fields_ = [
        *[(name, ctypes.c_int64) for name in _NUMBERS.split()],
        ("eps", ctypes.c_double),
        ("scale", ctypes.c_double),
        ("pages", ctypes.c_void_p),
    ]


class Pages(ctypes.Structure):
    """A paged cache. It does not keep alive what it points at."""

    _fields_ = [
        *[
            (name, ctypes.c_int64)
            for name in ["size", "half", "of_block", "of_head", "of_sequence"]
        ],
        *[(name, ctypes.c_void_p) for name in ["table", "sequence", "seen"]],
    ]
