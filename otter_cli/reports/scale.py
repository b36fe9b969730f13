"""Axes: where a value stands, and which round values are written beside it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Maps `low`..`high` onto pixels `start`..`stop` (which may run downwards)."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.stop - self.start), 1)


def covering(values: Iterable[float], start: float, stop: float) -> Scale:
    """A scale with a little air around the values, also where all of them are equal."""
    known = list(values)
    low, high = min(known), max(known)
    air = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    # Counts, shares and times are not below nothing: air must not suggest that they are.
    floor = 0.0 if low >= 0 else -math.inf
    return Scale(max(low - air, floor), high + air, start, stop)


def ticks(scale: Scale, about: int = 4, *, whole: bool = False) -> list[float]:
    """Round values inside the scale, in steps of 1, 2 or 5 times a power of ten."""
    raw = (scale.high - scale.low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.75)
    step = max(1.0, step) if whole else step
    first = math.ceil(scale.low / step - 1e-9)
    last = math.floor(scale.high / step + 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def tick_text(value: float) -> str:
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.6g}"
