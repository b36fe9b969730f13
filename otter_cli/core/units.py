"""Quantities as people read them."""

import re

from otter_cli.core.errors import OtterError

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|)", re.ASCII)
_UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600}
_MOST_SECONDS = 1e7


def bytes_text(count: float) -> str:
    """Decimal units, three digits: 27812680 -> '27.8 MB'."""
    return _scaled(count, 1000, ("B", "kB", "MB", "GB", "TB", "PB"))


def count_text(count: float) -> str:
    """Small counts in full, large ones to three digits: 1675 -> '1,675', 6950000 -> '6.95 M'."""
    if abs(count) < 10_000:
        return f"{count:,.0f}"
    return _scaled(count, 1000, ("", "k", "M", "B", "T"))


def percent_text(share: float) -> str:
    """A share of 1 as a percentage: 0.8649 -> '86.5 %'."""
    return f"{100 * share:.1f} %"


def seconds_text(seconds: float) -> str:
    """A duration: 0.0031 -> '3.1 ms', 125 -> '2 min 05 s', 3720 -> '1 h 02 min'."""
    if seconds < 0.9995:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


def parse_seconds(text: str) -> float:
    """The inverse, for one unit: '30s' -> 30, '2m' -> 120, '1h' -> 3600, '45' -> 45."""
    found = _DURATION.fullmatch(text.strip().lower())
    seconds = float(found.group(1)) * _UNITS[found.group(2)] if found else 0.0
    if not 0 < seconds < _MOST_SECONDS:
        raise OtterError(f"{text!r} is no duration", hint="say it like 30s, 2m or 1h")
    return seconds


def _scaled(count: float, step: int, names: tuple[str, ...]) -> str:
    scale = 0
    while abs(count) >= step * 0.9995 and scale < len(names) - 1:
        count /= step
        scale += 1
    digits = 0 if scale == 0 or abs(count) >= 99.95 else 1 if abs(count) >= 9.995 else 2
    return f"{count:.{digits}f} {names[scale]}".rstrip()
