"""What `Otter.generate` and `Otter.score` return: token strings with signals as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from otter_cli.decoding.texts import token_texts

if TYPE_CHECKING:
    from otter_cli.decoding import Counters, Generation

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class ScoredText:
    """A text with its signals.

    `signals` maps a name to an array of shape [tokens], or [tokens, labels] where the signal has
    several scores, named in `labels`. Classes are probabilities. A value that is not finite is NaN.
    """

    text: str
    tokens: list[str]
    token_ids: list[int]
    signals: dict[str, Array]
    labels: dict[str, list[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.text

    def __len__(self) -> int:
        return len(self.token_ids)

    def series(self) -> dict[str, Array]:
        """One array [tokens] for each score: labels of one signal apart, as SIGNAL.LABEL."""
        series: dict[str, Array] = {}
        for name, values in self.signals.items():
            if values.ndim == 1:
                series[name] = values
                continue
            labels = self.labels.get(name) or [str(k) for k in range(values.shape[1])]
            series |= {f"{name}.{label}": values[:, k] for k, label in enumerate(labels)}
        return series

    def _repr_html_(self) -> str:
        """The text in a notebook, coloured by its first signal."""
        from otter_cli.api.colours import html_of

        return html_of(self)


@dataclass(frozen=True)
class GeneratedText(ScoredText):
    """New text. `token_ids` and `tokens` hold the end token, `text` leaves special tokens out.

    `logprobs`: log-probability of each token under the base, in nats, [tokens]. `finish`: "eos",
    "length", "stop" or "rejected"; `message` says which stop string or signal ended the text.
    """

    logprobs: Array = field(default_factory=lambda: np.zeros(0))
    finish: str = "length"
    message: str = ""
    counters: Counters | None = None


def generated_text(
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
        signals={name: finite(np.array(values)) for name, values in row.signals.items()},
        labels={name: labels[name] for name in row.signals if name in labels},
        logprobs=np.array(row.logprobs, np.float64),
        finish=row.finish,
        message=row.message,
        counters=row.counters,
    )


def finite(values: Any) -> Array:
    """The values as an array, NaN for each that is not finite."""
    array = np.asarray(values, np.float64)
    return np.where(np.isfinite(array), array, np.nan)
