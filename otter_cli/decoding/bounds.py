"""Bounds on a text while it grows: `Stops` end a row, a `Gate` says in which rows guides act."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from otter_cli.core.errors import OtterError
from otter_cli.decoding.kv_session import HiddenStates
from otter_cli.decoding.session import DecodingSession, score_column, signal_scores
from otter_cli.signals.comparisons import Comparison, parse_comparison
from otter_cli.signals.finite import require_finite


@dataclass(frozen=True)
class SignalBound:
    """Crossed where a signal is above (or below) a number at the last token of a row. An
    `inclusive` bound is crossed at the number itself too."""

    signal: str
    bound: float
    above: bool = True
    label: str | None = None
    inclusive: bool = False

    def check(self, session: DecodingSession) -> None:
        """Raises OtterError for a signal that scores no text, and for an unknown label."""
        score_column(session.model, self.signal, self.label)

    def scores(self, session: DecodingSession, states: HiddenStates) -> Tensor:
        """The signal at each position of `states` [rows, n, d], [rows, n]."""
        column = score_column(session.model, self.signal, self.label)
        return signal_scores(session, self.signal, states)[..., column]

    def crossed(self, scores: Tensor) -> Tensor:
        """Which scores have crossed the bound. Raises OtterError where one is not finite."""
        require_finite(scores, f"signal {self.signal!r} of {self}")
        if self.inclusive:
            return scores >= self.bound if self.above else scores <= self.bound
        return scores > self.bound if self.above else scores < self.bound

    def __str__(self) -> str:
        name = self.signal if self.label is None else f"{self.signal}.{self.label}"
        sign = (">" if self.above else "<") + ("=" if self.inclusive else "")
        return str(Comparison(name, sign, self.bound))


def parse_signal_bound(text: str) -> SignalBound:
    """Reads `toxicity>0.5`, `toxicity>=0.5` and `toxicity.insult>0.5`. Raises OtterError."""
    return to_signal_bound(parse_comparison(text))


def to_signal_bound(comparison: Comparison) -> SignalBound:
    """The bound of a comparison of a signal, or of one of its labels, with a number."""
    above, inclusive = comparison.sign.startswith(">"), comparison.sign.endswith("=")
    return SignalBound(
        comparison.signal, comparison.number, above, comparison.label, inclusive=inclusive
    )


@dataclass(frozen=True)
class Stops:
    """A row ends once its text contains one of `strings`, which need the tokenizer, or at the token
    where one of `signals` crosses its bound. That token is the row's last."""

    strings: tuple[str, ...] = ()
    signals: tuple[SignalBound, ...] = ()
    tokenizer: Any = None

    def __post_init__(self) -> None:
        if "" in self.strings:
            raise OtterError(
                "a stop string is empty, and an empty string ends every text at once",
                hint="give the string to end at",
            )

    @property
    def needs_stream(self) -> bool:
        return bool(self.signals)

    def first_match(self, tokens: Sequence[int]) -> str | None:
        """The first of the strings that the end of the text contains."""
        if not self.strings:
            return None
        # A new match ends in the last token, and has at most as many tokens as it has bytes.
        longest = max(len(string.encode()) for string in self.strings)
        text = self.tokenizer.decode(list(tokens[-longest - 1 :]))
        return next((string for string in self.strings if string in text), None)


NO_STOPS = Stops()


@dataclass(frozen=True)
class Gate:
    """Open where every given condition holds: the entropy of the base's next token (in nats) is
    above `entropy`, the probability of its best token is below `top_probability`, and the text so
    far crosses the bound `signal`."""

    entropy: float | None = None
    top_probability: float | None = None
    signal: SignalBound | None = None

    def __post_init__(self) -> None:
        for bound in (self.entropy, self.top_probability):
            if bound is not None and not math.isfinite(bound):
                raise OtterError(f"a gate at {bound}", hint="a number")

    @property
    def needs_stream(self) -> bool:
        return self.signal is not None

    def is_open(self, session: DecodingSession, state: HiddenStates, logits: Tensor) -> Tensor:
        """[rows], by the base's logits [rows, vocab] and the states [rows, 1, d] they come from."""
        log_p = logits.float().log_softmax(-1)
        # True, and false where the logits are NaN.
        is_open = log_p[:, 0] == log_p[:, 0]
        if self.entropy is not None:
            # 0 log 0 is 0, for a token that cannot come.
            terms = (log_p.exp() * log_p).nan_to_num(0.0)
            is_open = is_open & (-terms.sum(-1) > self.entropy)
        if self.top_probability is not None:
            is_open = is_open & (log_p.amax(-1).exp() < self.top_probability)
        if self.signal is not None:
            is_open = is_open & self.signal.crossed(self.signal.scores(session, state)[:, 0])
        return is_open


def parse_gate(texts: list[str]) -> Gate | None:
    """Reads `entropy>1.5`, `p<0.6` and `SIGNAL>0.5`, all of which must hold. Raises OtterError."""
    entropy, top, signal = None, None, None
    for text in texts:
        comparison = parse_comparison(text)
        name, number = comparison.name, comparison.number
        if name == "entropy" and comparison.sign == ">":
            entropy = number
        elif name == "p" and comparison.sign == "<":
            top = number
        elif name in ("entropy", "p") or signal is not None:
            raise OtterError(
                f"gate {text!r} can't be", hint="entropy>X, p<X, and one signal's bound"
            )
        else:
            signal = to_signal_bound(comparison)
    return Gate(entropy, top, signal) if texts else None
