"""What ends a row before its length: strings in its text, a signal that crosses a bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from otter_cli.core.errors import OtterError
from otter_cli.decoding.gates import SignalBound


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
