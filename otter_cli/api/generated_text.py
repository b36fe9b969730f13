"""What `Otter.generate` and `Otter.score` return: token strings with signals as arrays.

In a notebook, each token is shown on a background colour for the value of its signal.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from otter_cli.decoding.results import token_texts
from otter_cli.reports.html import html_text
from otter_cli.reports.page import colour_of, scale_of

if TYPE_CHECKING:
    from otter_cli.decoding.results import Generation, GenerationCounters


def to_html(text: ScoredText) -> str:
    """One <div>; hovering over a token shows its value. Without signals, the text alone."""
    series = text.series()
    if not series:
        return f'<div style="white-space: pre-wrap">{html_text(text.text)}</div>'
    name, values = next(iter(series.items()))
    low, high = scale_of(values.tolist())
    spans = []
    for token, value in zip(text.tokens, values, strict=True):
        style = f"background: {colour_of(value, low, high)}; color: #111"
        title = f"{html_text(name)} {_format_value(value)}"
        spans.append(f'<span style="{style}" title="{title}">{html_text(token)}</span>')
    return (
        f'<div style="white-space: pre-wrap">{"".join(spans)}</div>'
        f"<div><small>{html_text(name)}: {_legend(values, low, high)}</small></div>"
    )


def _format_value(value: float) -> str:
    return f"{value:+.3f}" if math.isfinite(value) else "has no value"


def _legend(values: Iterable[float], low: float, high: float) -> str:
    """What the colours mean. Equal values are all grey, and so are tokens without a value."""
    if not any(map(math.isfinite, values)):
        return "no token has a value"
    if low == high:
        return f"{low:+.2f} at every token"
    return f"{low:+.2f} (red) to {high:+.2f} (green)"


FloatArray = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class ScoredText:
    """A text with its signals.

    `signals` maps a name to an array of shape [tokens], or [tokens, labels] where the signal has
    several scores, named in `labels`. Classes are probabilities. A value that is not finite is NaN.
    """

    text: str
    tokens: list[str]
    token_ids: list[int]
    signals: dict[str, FloatArray]
    labels: dict[str, list[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.text

    def __len__(self) -> int:
        return len(self.token_ids)

    def series(self) -> dict[str, FloatArray]:
        """One array [tokens] for each score: labels of one signal apart, as SIGNAL.LABEL."""
        series: dict[str, FloatArray] = {}
        for name, values in self.signals.items():
            if values.ndim == 1:
                series[name] = values
                continue
            labels = self.labels.get(name) or [str(k) for k in range(values.shape[1])]
            series |= {f"{name}.{label}": values[:, k] for k, label in enumerate(labels)}
        return series

    def _repr_html_(self) -> str:
        """The text in a notebook, coloured by its first signal."""

        return to_html(self)


@dataclass(frozen=True)
class GeneratedText(ScoredText):
    """New text. `token_ids` and `tokens` hold the end token, `text` leaves special tokens out.

    `logprobs`: log-probability of each token under the base, in nats, [tokens]. `finish`: "eos",
    "length", "stop" or "rejected"; `message` says which stop string or signal ended the text.
    """

    logprobs: FloatArray = field(default_factory=lambda: np.zeros(0))
    finish: str = "length"
    message: str = ""
    counters: GenerationCounters | None = None


def to_generated_text(
    tokenizer: Any, prompt: Sequence[int], row: Generation, labels: dict[str, list[str]]
) -> GeneratedText:
    """One row of `otter_cli.decoding.generate`, as text and arrays."""
    texts = token_texts(tokenizer, prompt, row.tokens)
    special = set(tokenizer.all_special_ids)
    parts = zip(row.tokens, texts, strict=True)
    return GeneratedText(
        text="".join(text for token, text in parts if token not in special),
        tokens=texts,
        token_ids=list(row.tokens),
        signals={name: nan_if_not_finite(np.array(values)) for name, values in row.signals.items()},
        labels={name: labels[name] for name in row.signals if name in labels},
        logprobs=np.array(row.logprobs, np.float64),
        finish=row.finish,
        message=row.message,
        counters=row.counters,
    )


def nan_if_not_finite(values: Any) -> FloatArray:
    """The values as an array, NaN for each that is not finite."""
    array = np.asarray(values, np.float64)
    return np.where(np.isfinite(array), array, np.nan)
