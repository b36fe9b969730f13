"""Generated text with its signals: the colour scale, coloured tokens, sparklines, a table.

The same colours are used in the terminal, in a notebook and in an HTML report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from rich.table import Table
from rich.text import Text

from otter_cli.core.formatting import terminal_text

# From low to high.
SIGNAL_COLOURS = ("#d73027", "#f46d43", "#fdae61", "#d9d9d9", "#a6d96a", "#66bd63", "#1a9850")
NEUTRAL = SIGNAL_COLOURS[len(SIGNAL_COLOURS) // 2]


def scale_of(values: Sequence[float | None]) -> tuple[float, float]:
    """The lowest and the highest finite value: a reward has no fixed range. (0, 0) without any."""
    finite = [v for v in values if v is not None and math.isfinite(v)]
    return (min(finite), max(finite)) if finite else (0.0, 0.0)


def colour_of(value: float | None, low: float, high: float) -> str:
    """The colour of `value` on a scale from `low` to `high`; neutral where there is no value."""
    if value is None or not math.isfinite(value) or high <= low:
        return NEUTRAL
    share = min(max((value - low) / (high - low), 0.0), 1.0)
    return SIGNAL_COLOURS[min(int(share * len(SIGNAL_COLOURS)), len(SIGNAL_COLOURS) - 1)]


_BARS = "▁▂▃▄▅▆▇█"
# From low to high; the scale is the text's own, since a reward has no fixed range.
_TERMINAL_COLOURS = ("#d73027", "#f46d43", "#fdae61", "#d9d9d9", "#a6d96a", "#66bd63", "#1a9850")
_WIDTH = 100
_SHOWN_ROWS = 12

# A value that is not finite is None.
SignalValues = list[float | None]
SignalSeries = dict[str, SignalValues]


def text_lines(record: dict[str, Any]) -> list[Text]:
    """The prompt and its text, coloured by the first signal, and what the colours mean."""
    series = series_of(record)
    first = next(iter(series.values()), None)
    # A message ends where its answer begins; plain text goes on.
    between = "\n" if record.get("chat") else ""
    text = Text(terminal_text(record["prompt"]) + between, style="dim")
    for i, token in enumerate(record["tokens"]):
        text.append(
            terminal_text(token["text"]),
            style=_TERMINAL_COLOURS[_level(first, i, len(_TERMINAL_COLOURS))] if first else "",
        )
    if not first:
        return [text]
    legend = Text(f"{next(iter(series))}: ", style="dim")
    legend.append("low ", _TERMINAL_COLOURS[0]).append("middle ", _TERMINAL_COLOURS[3]).append(
        "high", _TERMINAL_COLOURS[-1]
    )
    return [text, legend]


def sparklines(record: dict[str, Any]) -> list[Text]:
    """A line for each signal, its lowest and highest value beside it; long texts in means."""
    series = series_of(record)
    margin = max(map(len, series), default=0)
    lines = []
    for name, values in series.items():
        if not (known := _finite(values)):
            lines.append(Text(name.ljust(margin), style="cyan").append(" no finite value", "dim"))
            continue
        low, high = f"{min(known):+.2f}", f"{max(known):+.2f}"
        means = _means(values, _WIDTH - margin - len(low) - len(high) - 3)
        bars = "".join(
            " " if means[i] is None else _BARS[_level(means, i, len(_BARS))]
            for i in range(len(means))
        )
        line = Text(name.ljust(margin), style="cyan")
        lines.append(
            line.append(f" {low} ", "dim").append(bars, "default").append(f" {high}", "dim")
        )
    return lines


def token_table(record: dict[str, Any]) -> Table:
    """Tokens with log-probability and signals; of a long text the first and the last few."""
    series = series_of(record)
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("#", justify="right", style="dim")
    table.add_column("token")
    for name in ("logprob", *series):
        table.add_column(name, justify="right")
    count = len(record["tokens"])
    for i, token in enumerate(record["tokens"]):
        if _SHOWN_ROWS <= i < count - _SHOWN_ROWS:
            if i == _SHOWN_ROWS:
                table.add_row("", "...", *[""] * (1 + len(series)))
            continue
        read = [values[i] for values in series.values()]
        scores = ["none" if value is None else f"{value:+.3f}" for value in read]
        table.add_row(str(i + 1), repr(token["text"])[1:-1], f"{token['logprob']:.2f}", *scores)
    return table


def series_of(record: dict[str, Any]) -> SignalSeries:
    """One list of numbers for each score: attributes and classes apart, by their labels."""
    found: SignalSeries = {}
    for name, values in record["signals"].items():
        if values and isinstance(values[0], list):
            labels = record["labels"].get(name) or range(len(values[0]))
            for k, label in enumerate(labels):
                found[f"{name}.{label}"] = [value[k] for value in values]
        elif values:
            found[name] = values
    return found


def _finite(values: SignalValues) -> list[float]:
    return [value for value in values if value is not None]


def _means(values: SignalValues, width: int) -> SignalValues:
    """At most `width` values: means over stretches of equal length, of the values there are."""
    count = min(len(values), width)
    edges = [i * len(values) // count for i in range(count + 1)]
    parts = [_finite(values[start:stop]) for start, stop in pairwise(edges)]
    return [sum(part) / len(part) if part else None for part in parts]


def _level(values: SignalValues, index: int, levels: int) -> int:
    """The middle where there is nothing to tell apart."""
    known, value = _finite(values), values[index]
    low, high = min(known, default=0.0), max(known, default=0.0)
    if value is None or high == low:
        return levels // 2
    return min(levels - 1, int((value - low) / (high - low) * levels))
