"""How a signal's value becomes a colour: the same in the terminal, in a notebook, in a report."""

from __future__ import annotations

import math
from collections.abc import Sequence

# From low to high.
COLOURS = ("#d73027", "#f46d43", "#fdae61", "#d9d9d9", "#a6d96a", "#66bd63", "#1a9850")
NEUTRAL = COLOURS[len(COLOURS) // 2]


def scale_of(values: Sequence[float | None]) -> tuple[float, float]:
    """The lowest and the highest finite value: a reward has no fixed range. (0, 0) without any."""
    finite = [v for v in values if v is not None and math.isfinite(v)]
    return (min(finite), max(finite)) if finite else (0.0, 0.0)


def colour_of(value: float | None, low: float, high: float) -> str:
    """The colour of `value` on a scale from `low` to `high`; neutral where there is no value."""
    if value is None or not math.isfinite(value) or high <= low:
        return NEUTRAL
    share = min(max((value - low) / (high - low), 0.0), 1.0)
    return COLOURS[min(int(share * len(COLOURS)), len(COLOURS) - 1)]
