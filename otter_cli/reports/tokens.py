"""Generated text as a person reads it with its signals: coloured tokens, a sparkline, a table."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

_BARS = "▁▂▃▄▅▆▇█"
# From low to high; the scale is the text's own, since a reward has no fixed range.
_COLOURS = ("#d73027", "#f46d43", "#fdae61", "#d9d9d9", "#a6d96a", "#66bd63", "#1a9850")
_ROWS = 12


def signal_lines(record: dict[str, Any]) -> list[Text]:
    """The prompt and its text, coloured by the first signal, then a sparkline of each signal."""
    series = _series(record["signals"])
    text = Text(record["prompt"], style="dim")
    first = next(iter(series.values()), None)
    for i, token in enumerate(record["tokens"]):
        colour = _COLOURS[_level(first, i, len(_COLOURS))] if first else "default"
        text.append(token["text"], style=colour)
    lines = [text]
    for name, values in series.items():
        bars = "".join(_BARS[_level(values, i, len(_BARS))] for i in range(len(values)))
        line = Text(f"{name:<12} ", style="cyan")
        line.append(f"{min(values):+.2f} ", style="dim")
        line.append(bars)
        line.append(f" {max(values):+.2f}", style="dim")
        lines.append(line)
    return lines


def token_table(record: dict[str, Any]) -> Table:
    """Tokens with log-probability and signals; of a long text the first and the last few."""
    series = _series(record["signals"])
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("#", justify="right", style="dim")
    table.add_column("token")
    for name in ("logprob", *series):
        table.add_column(name, justify="right")
    count = len(record["tokens"])
    cut = count > 2 * _ROWS
    for i, token in enumerate(record["tokens"]):
        if cut and _ROWS <= i < count - _ROWS:
            if i == _ROWS:
                table.add_row("", "...", *[""] * (1 + len(series)))
            continue
        scores = [f"{values[i]:+.3f}" for values in series.values()]
        table.add_row(str(i + 1), repr(token["text"])[1:-1], f"{token['logprob']:.2f}", *scores)
    return table


def _series(signals: dict[str, Any]) -> dict[str, list[float]]:
    """One list of numbers for each score: attributes and classes apart."""
    found: dict[str, list[float]] = {}
    for name, values in signals.items():
        if values and isinstance(values[0], list):
            for k in range(len(values[0])):
                found[f"{name}.{k}"] = [value[k] for value in values]
        elif values:
            found[name] = values
    return found


def _level(values: list[float], index: int, levels: int) -> int:
    low, high = min(values), max(values)
    if high == low:
        return levels // 2
    return min(levels - 1, int((values[index] - low) / (high - low) * levels))
