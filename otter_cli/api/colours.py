"""A text as HTML for a notebook: each token on a background that shows its signal."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from otter_cli.reports.colours import colour_of, scale_of
from otter_cli.reports.escaping import html_text

if TYPE_CHECKING:
    from otter_cli.api.generated import ScoredText


def html_of(text: ScoredText) -> str:
    """One <div>; hovering over a token shows its value. Without signals, the text alone."""
    series = text.series()
    if not series:
        return f'<div style="white-space: pre-wrap">{html_text(text.text)}</div>'
    name, values = next(iter(series.items()))
    low, high = scale_of(values.tolist())
    spans = []
    for token, value in zip(text.tokens, values, strict=True):
        style = f"background: {colour_of(value, low, high)}; color: #111"
        title = f"{html_text(name)} {_written(value)}"
        spans.append(f'<span style="{style}" title="{title}">{html_text(token)}</span>')
    return (
        f'<div style="white-space: pre-wrap">{"".join(spans)}</div>'
        f"<div><small>{html_text(name)}: {_legend(values, low, high)}</small></div>"
    )


def _written(value: float) -> str:
    return f"{value:+.3f}" if math.isfinite(value) else "has no value"


def _legend(values: Iterable[float], low: float, high: float) -> str:
    """What the colours mean. Equal values are all grey, and so are tokens without a value."""
    if not any(map(math.isfinite, values)):
        return "no token has a value"
    if low == high:
        return f"{low:+.2f} at every token"
    return f"{low:+.2f} (red) to {high:+.2f} (green)"
