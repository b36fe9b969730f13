"""What ends a row before its length: a stop string, or a signal that crosses a bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from otter_cli.core.errors import OtterError
from otter_cli.decoding.hidden_states import HiddenStates
from otter_cli.decoding.session import DecodingSession, score_column, signal_scores
from otter_cli.signals.finite import require_finite


@dataclass(frozen=True)
class SignalBound:
    """A signal above or below a number, at the last token of a row."""

    signal: str
    bound: float
    above: bool = True
    label: str | None = None

    def check(self, session: DecodingSession) -> None:
        """Raises OtterError for a signal that scores nothing, and for an unknown label."""
        score_column(session.model, self.signal, self.label)

    def scores(self, session: DecodingSession, states: HiddenStates) -> Tensor:
        """[rows, n], by states [rows, n, d]."""
        column = score_column(session.model, self.signal, self.label)
        return signal_scores(session, self.signal, states)[..., column]

    def crossed(self, scores: Tensor) -> Tensor:
        """Which of the scores have crossed the bound. Raises OtterError where one is not finite."""
        require_finite(scores, f"signal {self.signal!r} of {self}")
        return scores > self.bound if self.above else scores < self.bound

    def __str__(self) -> str:
        name = self.signal if self.label is None else f"{self.signal}.{self.label}"
        return f"{name}{'>' if self.above else '<'}{self.bound:g}"


def parse_bound(text: str) -> tuple[str, bool, float]:
    """Reads `NAME>NUMBER` and `NAME<NUMBER`: name, whether above, number. Raises OtterError."""
    for sign in (">", "<"):
        name, found, number = text.partition(sign)
        if found and name:
            try:
                return name, sign == ">", float(number)
            except ValueError:
                break
    raise OtterError(f"{text!r} is no bound", hint="for example entropy>1.5, p<0.6, toxicity>0.5")


def parse_signal_bound(text: str) -> SignalBound:
    """Reads `toxicity>0.5` and `toxicity.insult>0.5`. Raises OtterError."""
    name, above, number = parse_bound(text)
    signal, dot, label = name.partition(".")
    return SignalBound(signal, number, above, label if dot else None)


@dataclass(frozen=True)
class Stops:
    """`strings` end a row once its text holds one, and need the tokenizer; `signals` reject it, a
    filter for what is served: the token that crossed the bound is its last."""

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

    def found(self, tokens: Sequence[int]) -> str | None:
        """The first of the strings to occur in the text of the tokens."""
        if not self.strings:
            return None
        # The string ends within the last token, so it lies within as many tokens as it has bytes.
        longest = max(len(string.encode()) for string in self.strings)
        text = self.tokenizer.decode(list(tokens[-longest - 1 :]))
        return next((string for string in self.strings if string in text), None)


NO_STOPS = Stops()
