"""Bit comparison, checked against numpy's own function for neighbouring numbers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from otter_cli.verification.bits import difference, same_bits, ulp_distance

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def test_nan_equals_itself_and_minus_zero_is_not_zero() -> None:
    nan = torch.tensor([math.nan, math.inf])
    assert same_bits(nan, nan.clone())
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))


def test_shape_and_dtype_count() -> None:
    assert not same_bits(torch.zeros(2, 3), torch.zeros(3, 2))
    assert not same_bits(torch.zeros(2), torch.zeros(2, dtype=torch.bfloat16))
    assert not same_bits(torch.zeros(2, dtype=torch.int32), torch.zeros(2))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_view_is_compared_by_value(dtype: torch.dtype) -> None:
    square = torch.arange(9.0).view(3, 3).to(dtype)
    assert same_bits(square.t(), square.t().contiguous())
    assert not same_bits(square.t(), square)


@given(FLOATS, st.integers(0, 40))
@settings(max_examples=200, deadline=None)
def test_neighbours_are_one_step_apart(start: float, steps: int) -> None:
    value = np.float32(start)
    for _ in range(steps):
        with np.errstate(over="ignore"):
            value = np.nextafter(value, np.float32(np.inf))
    if not np.isfinite(value):
        return
    first, last = torch.tensor([start]), torch.tensor([float(value)])
    # 0.0 and -0.0 are one number with two patterns.
    crossed = int(start <= 0 <= float(value) and steps > 0 and start != 0)
    assert abs(int(ulp_distance(first, last)) - steps) <= crossed
    assert int(ulp_distance(last, first)) == int(ulp_distance(first, last))


@pytest.mark.parametrize("dtype", DTYPES)
def test_steps_across_zero_and_between_powers(dtype: torch.dtype) -> None:
    tiny = torch.tensor([torch.finfo(dtype).smallest_normal], dtype=dtype)
    assert int(ulp_distance(tiny, -tiny)) == 2 * int(ulp_distance(tiny, torch.zeros_like(tiny)))
    one = torch.ones(1, dtype=dtype)
    assert int(ulp_distance(one, one + torch.finfo(dtype).eps)) == 1


def test_a_difference_is_counted_like_numpy_counts_it() -> None:
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(3, 90, 11, generator=generator)
    other = base.clone()
    other[1, 5:, 3] += 1e-3
    other[2, 80, 0] += 100
    found = difference(base, other)
    a, b = base.numpy(), other.numpy()
    assert found.compared == a.size and found.rows == 270
    assert found.changed == int((a != b).sum())
    assert found.argmaxes == int((a.argmax(-1) != b.argmax(-1)).sum())
    assert found.largest == float(np.abs(a.astype(np.float64) - b).max())
    assert found.first == (1, 5)
    assert sum(found.histogram.values()) == found.changed

    def log_softmax(x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float64)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    p, q = log_softmax(a), log_softmax(b)
    assert found.kl == pytest.approx((np.exp(p) * (p - q)).sum(-1).mean(), rel=1e-9)


def test_what_is_not_finite_is_counted_apart() -> None:
    base, other = torch.zeros(1, 4, 5), torch.zeros(1, 4, 5)
    base[0, 2, 1] = other[0, 2, 1] = math.nan
    other[0, 3, 0] = math.inf
    found = difference(base, other)
    assert (found.changed, found.not_finite, found.largest) == (1, 1, 0.0)
    assert math.isfinite(found.kl)


def test_equal_logits_leave_nothing() -> None:
    logits = torch.randn(2, 3, 4)
    found = difference(logits, logits.clone())
    assert (found.changed, found.kl, found.first, found.histogram) == (0, 0.0, None, {})


def test_other_shapes_are_told() -> None:
    found = difference(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4))
    assert found.shapes == ([1, 2, 3], [1, 2, 4]) and not found.compared
