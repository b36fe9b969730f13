"""Bit equality of tensors, and how far two tensors are apart when they differ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_ROWS_AT_ONCE = 64  # compared at a time: wide vocabularies take eight bytes an entry here


def bit_pattern(tensor: Tensor) -> Tensor:
    """The stored patterns as integers: unlike values, NaN equals itself and -0 is not 0."""
    return tensor.detach().contiguous().view(_INTEGERS[tensor.element_size()])


def same_bits(first: Tensor, second: Tensor) -> bool:
    alike = first.shape == second.shape and first.dtype == second.dtype
    return alike and torch.equal(bit_pattern(first), bit_pattern(second))


@dataclass
class LogitsDifference:
    """What moved between the logits of a base and of another model.

    `ulp`: steps between neighbouring numbers of the dtype; `histogram` counts changed logits by
    the power of two at or below it. `kl`: mean of KL(base || other) a row, in nats. Pairs of
    which either is not finite count in `non_finite_error` and in `changed`, nowhere else.
    """

    compared: int = 0
    changed: int = 0
    rows: int = 0
    argmaxes: int = 0
    largest: float = 0.0
    ulp: int = 0
    not_finite: int = 0
    kl: float = 0.0
    histogram: dict[int, int] = field(default_factory=dict)
    # [batch row, position] of the first logit that moved.
    first: tuple[int, int] | None = None
    # Where they have not even one shape, nothing else is counted.
    shapes: tuple[list[int], list[int]] | None = None

    def record(self) -> dict[str, Any]:
        histogram = {str(step): count for step, count in sorted(self.histogram.items())}
        return {**vars(self), "histogram": histogram}


def difference(base: Tensor, other: Tensor) -> LogitsDifference:
    """Compares logits [batch, positions, vocab] of one dtype, row by row."""
    if base.shape != other.shape:
        return LogitsDifference(shapes=([*base.shape], [*other.shape]))
    total = LogitsDifference()
    kl = 0.0
    for start, a, b in _row_blocks(base, other):
        moved = bit_pattern(a) != bit_pattern(b)
        finite = a.isfinite() & b.isfinite()
        total.compared += moved.numel()
        total.rows += len(a)
        if not moved.any():
            continue
        if total.first is None:
            row = start + int(moved.any(-1).nonzero()[0])
            total.first = (row // base.shape[1], row % base.shape[1])
        total.changed += int(moved.sum())
        total.not_finite += int((moved & ~finite).sum())
        total.argmaxes += int((a.argmax(-1) != b.argmax(-1)).sum())
        _add_distances(total, a[moved & finite], b[moved & finite])
        kl += _divergence(a, b, finite)
    total.kl = kl / max(total.rows, 1)
    return total


def ulp_distance(first: Tensor, second: Tensor) -> Tensor:
    """Steps between finite numbers of one float dtype, as int64."""
    return (_ordered(first) - _ordered(second)).abs()


def _ordered(values: Tensor) -> Tensor:
    """Integers in the order of the numbers: the sign bit of a float is no two's complement."""
    patterns = bit_pattern(values).long()
    lowest = torch.iinfo(_INTEGERS[values.element_size()]).min
    return torch.where(patterns < 0, lowest - patterns, patterns)


def _row_blocks(base: Tensor, other: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    blocks = zip(
        base.flatten(0, 1).split(_ROWS_AT_ONCE),
        other.flatten(0, 1).split(_ROWS_AT_ONCE),
        strict=True,
    )
    for index, (a, b) in enumerate(blocks):
        yield index * _ROWS_AT_ONCE, a, b


def _add_distances(total: LogitsDifference, a: Tensor, b: Tensor) -> None:
    if not a.numel():
        return
    total.largest = max(total.largest, (a.double() - b.double()).abs().max().item())
    steps = ulp_distance(a, b)
    total.ulp = max(total.ulp, int(steps.max()))
    powers, counts = steps.double().log2().floor().long().unique(return_counts=True)
    for power, count in zip(powers.tolist(), counts.tolist(), strict=True):
        total.histogram[2**power] = total.histogram.get(2**power, 0) + count


def _divergence(a: Tensor, b: Tensor, finite: Tensor) -> float:
    whole = finite.all(-1)
    p, q = a[whole].double().log_softmax(-1), b[whole].double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum())
