"""Conversions equal torch's, bit for bit."""

import numpy as np
import pytest
import torch

from otter_cli.checkpoint.dtypes import DTYPE_BITS, NUMPY_DTYPES, Array, decode, encode

EVERY_16_BITS = np.arange(2**16, dtype=np.uint16)

# Around every rounding boundary of bfloat16: zeros, ties, carries into the exponent, infinity.
EDGES = np.array(
    [
        [high << 16 | low for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)]
        for high in (
            0,
            1,
            0x7F,
            0x80,
            0x3F7F,
            0x3F80,
            0x3F81,
            0x7F7E,
            0x7F7F,
            0x7F80,
            0x8000,
            0xFF7F,
        )
    ],
    dtype=np.uint32,
).reshape(-1)


def as_torch(bits: Array, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(bits.view(np.int16).copy()).view(dtype)


def test_every_bfloat16_becomes_its_float32() -> None:
    ours = decode(EVERY_16_BITS, "BF16")
    theirs = as_torch(EVERY_16_BITS, torch.bfloat16).float().numpy()
    assert np.array_equal(ours.view(np.uint32), theirs.view(np.uint32))


def test_every_float16_becomes_its_float32() -> None:
    ours = decode(EVERY_16_BITS.view("<f2"), "F16")
    theirs = as_torch(EVERY_16_BITS, torch.float16).float().numpy()
    assert np.array_equal(ours, theirs, equal_nan=True)
    assert np.array_equal(np.signbit(ours), np.signbit(theirs))


@pytest.mark.parametrize(
    ("name", "dtype"), [("BF16", torch.bfloat16), ("F16", torch.float16)], ids=["BF16", "F16"]
)
def test_narrowing_rounds_as_torch_does(name: str, dtype: torch.dtype) -> None:
    random = np.random.default_rng(7).integers(0, 2**32, 10**6, dtype=np.uint32)
    values = np.concatenate([EDGES, random]).view(np.float32)
    ours = encode(values, name).view(np.uint16)
    theirs = torch.from_numpy(values).to(dtype).view(torch.int16).numpy().view(np.uint16)
    nan = np.isnan(values)
    assert nan.sum() > 1000
    assert np.array_equal(ours[~nan], theirs[~nan])
    assert np.isnan(decode(encode(values[nan], name), name)).all()


@pytest.mark.parametrize("name", ["BF16", "F16"])
def test_widening_and_narrowing_gives_every_number_back(name: str) -> None:
    stored = EVERY_16_BITS.view(NUMPY_DTYPES[name])
    values = decode(stored, name)
    kept = ~np.isnan(values)
    assert np.array_equal(encode(values, name).view(np.uint16)[kept], EVERY_16_BITS[kept])


def test_bits_of_bfloat16_are_passed_on() -> None:
    assert np.array_equal(encode(EVERY_16_BITS, "BF16"), EVERY_16_BITS)


def test_no_dimension_and_no_elements() -> None:
    assert decode(np.array(0x3F80, np.uint16), "BF16").tolist() == 1.0
    assert encode(np.array(1.0, np.float32), "BF16").tobytes() == b"\x80\x3f"
    assert decode(np.zeros((0, 3), np.uint16), "BF16").shape == (0, 3)


def test_strided_values_are_narrowed_in_their_order() -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4).T[::2]
    assert np.array_equal(decode(encode(values, "BF16"), "BF16"), values)


def test_any_byte_but_zero_is_true() -> None:
    assert decode(np.array([0, 1, 2, 255], np.uint8), "BOOL").tolist() == [False, True, True, True]


def test_stored_types_have_the_width_of_their_name() -> None:
    assert all(
        8 * np.dtype(numpy).itemsize == DTYPE_BITS[name] for name, numpy in NUMPY_DTYPES.items()
    )
