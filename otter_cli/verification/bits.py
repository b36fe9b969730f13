"""Bit equality of tensors, and how far two tensors are apart when they differ."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_BLOCK_ROWS = 64  # rows compared at a time, because a comparison takes eight bytes per logit


def bit_pattern(tensor: Tensor) -> Tensor:
    """The bits of each element as an integer. Unlike values, NaN equals itself and -0 is not 0."""
    return tensor.detach().contiguous().view(_INTEGERS[tensor.element_size()])


def same_bits(first: Tensor, second: Tensor) -> bool:
    comparable = first.shape == second.shape and first.dtype == second.dtype
    return comparable and torch.equal(bit_pattern(first), bit_pattern(second))


@dataclass
class LogitsDifference:
    """How the logits of another model differ from the base's.

    `compared`, `changed`: logits. `rows`, `argmaxes`: positions, and those whose argmax differs.
    `largest`: the largest absolute difference. `ulp`: the largest number of steps between
    neighbouring numbers of the dtype; `histogram` counts changed logits by the power of two at or
    below their ulp. `kl`: mean of KL(base || other) a row, in nats. Pairs of which either is not
    finite count in `not_finite` and in `changed` only. `first`: [batch row, position] of the first
    changed logit.
    """

    compared: int = 0
    changed: int = 0
    rows: int = 0
    argmaxes: int = 0
    largest: float = 0.0
    ulp: int = 0
    not_finite: int = 0
    kl: float = 0.0
    histogram: dict[str, int] = field(default_factory=dict)
    first: tuple[int, int] | None = None
    # Of the base's logits and the others, where they differ. Nothing else is counted then.
    shapes: tuple[list[int], list[int]] | None = None


def difference(base: Tensor, other: Tensor) -> LogitsDifference:
    """Compares logits [batch, positions, vocab] of one dtype, row by row."""
    if base.shape != other.shape:
        return LogitsDifference(shapes=([*base.shape], [*other.shape]))
    total = LogitsDifference()
    kl = 0.0
    blocks = zip(
        base.flatten(0, 1).split(_BLOCK_ROWS), other.flatten(0, 1).split(_BLOCK_ROWS), strict=True
    )
    for index, (a, b) in enumerate(blocks):
        moved = bit_pattern(a) != bit_pattern(b)
        finite = a.isfinite() & b.isfinite()
        total.compared += moved.numel()
        total.rows += len(a)
        if not moved.any():
            continue
        if total.first is None:
            row = index * _BLOCK_ROWS + int(moved.any(-1).nonzero()[0])
            total.first = (row // base.shape[1], row % base.shape[1])
        total.changed += int(moved.sum())
        total.not_finite += int((moved & ~finite).sum())
        total.argmaxes += int((a.argmax(-1) != b.argmax(-1)).sum())
        _add_distances(total, a[moved & finite], b[moved & finite])
        kl += _kl(a, b, finite)
    total.kl = kl / max(total.rows, 1)
    return total


def ulp_distance(first: Tensor, second: Tensor) -> Tensor:
    """Steps between finite numbers of one float dtype, as int64."""
    return (_ordered(first) - _ordered(second)).abs()


def _ordered(values: Tensor) -> Tensor:
    """The bit patterns as integers in the order of the numbers. Those of negative floats are in
    reverse order."""
    patterns = bit_pattern(values).long()
    lowest = torch.iinfo(_INTEGERS[values.element_size()]).min
    return torch.where(patterns < 0, lowest - patterns, patterns)


def _add_distances(total: LogitsDifference, a: Tensor, b: Tensor) -> None:
    if not a.numel():
        return
    total.largest = max(total.largest, (a.double() - b.double()).abs().max().item())
    steps = ulp_distance(a, b)
    total.ulp = max(total.ulp, int(steps.max()))
    powers, counts = steps.double().log2().floor().long().unique(return_counts=True)
    for power, count in zip(powers.tolist(), counts.tolist(), strict=True):
        step = str(2**power)
        total.histogram[step] = total.histogram.get(step, 0) + count


def _kl(a: Tensor, b: Tensor, finite: Tensor) -> float:
    """The sum of KL(a || b) over the rows that are finite in both."""
    rows = finite.all(-1)
    p, q = a[rows].double().log_softmax(-1), b[rows].double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum())
