"""Generated text as a person reads it with its signals: coloured tokens, sparklines, a table."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from rich.table import Table
from rich.text import Text

from otter_cli.core.escaping import terminal_text

_BARS = "▁▂▃▄▅▆▇█"
# From low to high; the scale is the text's own, since a reward has no fixed range.
_COLOURS = ("#d73027", "#f46d43", "#fdae61", "#d9d9d9", "#a6d96a", "#66bd63", "#1a9850")
_WIDTH = 100
_ROWS = 12

Series = dict[str, list[float]]


def text_lines(record: dict[str, Any]) -> list[Text]:
    """The prompt and its text, coloured by the first signal, and what the colours mean."""
    series = series_of(record)
    first = next(iter(series.values()), None)
    text = Text(terminal_text(record["prompt"]), style="dim")
    for i, token in enumerate(record["tokens"]):
        text.append(
            terminal_text(token["text"]),
            style=_COLOURS[_level(first, i, len(_COLOURS))] if first else "",
        )
    if not first:
        return [text]
    legend = Text(f"{next(iter(series))}: ", style="dim")
    legend.append("low ", _COLOURS[0]).append("middle ", _COLOURS[3]).append("high", _COLOURS[-1])
    return [text, legend]


def sparklines(record: dict[str, Any]) -> list[Text]:
    """A line for each signal, its lowest and highest value beside it; long texts in means."""
    series = series_of(record)
    margin = max(map(len, series), default=0)
    lines = []
    for name, values in series.items():
        low, high = f"{min(values):+.2f}", f"{max(values):+.2f}"
        means = _means(values, _WIDTH - margin - len(low) - len(high) - 3)
        bars = "".join(_BARS[_level(means, i, len(_BARS))] for i in range(len(means)))
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
        if _ROWS <= i < count - _ROWS:
            if i == _ROWS:
                table.add_row("", "...", *[""] * (1 + len(series)))
            continue
        scores = [f"{values[i]:+.3f}" for values in series.values()]
        table.add_row(str(i + 1), repr(token["text"])[1:-1], f"{token['logprob']:.2f}", *scores)
    return table


def series_of(record: dict[str, Any]) -> Series:
    """One list of numbers for each score: attributes and classes apart, by their labels."""
    found: Series = {}
    for name, values in record["signals"].items():
        if values and isinstance(values[0], list):
            labels = record["labels"].get(name) or range(len(values[0]))
            for k, label in enumerate(labels):
                found[f"{name}.{label}"] = [value[k] for value in values]
        elif values:
            found[name] = values
    return found


def _means(values: list[float], width: int) -> list[float]:
    """At most `width` values: means over stretches of equal length."""
    count = min(len(values), width)
    edges = [i * len(values) // count for i in range(count + 1)]
    return [sum(values[start:stop]) / (stop - start) for start, stop in pairwise(edges)]


def _level(values: list[float], index: int, levels: int) -> int:
    low, high = min(values), max(values)
    if high == low:
        return levels // 2
    return min(levels - 1, int((values[index] - low) / (high - low) * levels))
