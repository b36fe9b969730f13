"""The results of `Otter.generate` and `Otter.score`: text, token strings, and signals as arrays.

`otter generate` and `otter chat` make their records from them. A notebook shows each token on a
background colour for the value of its signal.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from otter_cli.data.chat_template import special_ids
from otter_cli.decoding.results import token_texts
from otter_cli.reports.html import html_text
from otter_cli.reports.page import colour_of, scale_of
from otter_cli.signals.finite import finite_or_none

if TYPE_CHECKING:
    from otter_cli.decoding.results import Generation, GenerationCounters


def to_html(text: ScoredText) -> str:
    """The text as one <div>, coloured by its first signal. A tooltip shows each token's value."""
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
    """The meaning of the colours. Tokens are grey if all values are equal, or if they have none."""
    if not any(map(math.isfinite, values)):
        return "no token has a value"
    if low == high:
        return f"{low:+.2f} at every token"
    return f"{low:+.2f} (red) to {high:+.2f} (green)"


FloatArray = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class ScoredText:
    """A text with its signals.

    `signals` maps a name to an array [tokens], or [tokens, labels] for a signal with several
    scores, named in `labels`. Classes are probabilities. A value that is not finite is NaN.
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

    def signal_record(self) -> dict[str, Any]:
        """The signals as JSON has them: lists, with None for each value that is not finite."""
        return {name: finite_or_none(values.tolist()) for name, values in self.signals.items()}

    def series(self) -> dict[str, FloatArray]:
        """One array [tokens] per score. A signal with labels gives one per label, SIGNAL.LABEL."""
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
    """Generated text. `token_ids` and `tokens` include the end token; `text` omits special tokens.

    `logprobs` [tokens] holds the log-probability of each token under the base, in nats. `finish` is
    "eos", "length", "stop" or "rejected"; a chat has "interrupted" too. `message` says which stop
    string or signal ended the text.
    """

    logprobs: FloatArray = field(default_factory=lambda: np.zeros(0))
    finish: str = "length"
    message: str = ""
    counters: GenerationCounters | None = None


def to_generated_text(
    tokenizer: Any, prompt: Sequence[int], row: Generation, labels: dict[str, list[str]]
) -> GeneratedText:
    """The result of one prompt, given its token ids and its row from `decoding.generate`."""
    texts = token_texts(tokenizer, prompt, row.tokens)
    return GeneratedText(
        text=visible_text(tokenizer, row.tokens, texts),
        tokens=texts,
        token_ids=list(row.tokens),
        signals={name: nan_if_not_finite(np.array(values)) for name, values in row.signals.items()},
        labels={name: labels[name] for name in row.signals if name in labels},
        logprobs=np.array(row.logprobs, np.float64),
        finish=row.finish,
        message=row.message,
        counters=row.counters,
    )


def visible_text(tokenizer: Any, token_ids: Sequence[int], texts: Sequence[str]) -> str:
    """The tokens' texts joined, without special tokens."""
    special = special_ids(tokenizer)
    return "".join(t for id, t in zip(token_ids, texts, strict=True) if id not in special)


def nan_if_not_finite(values: Any) -> FloatArray:
    """The values as an array of float64, with NaN for each value that is not finite."""
    array = np.asarray(values, np.float64)
    return np.where(np.isfinite(array), array, np.nan)
