"""Which numbers an engine gives beside a token, and where they stand in its answer.

A number travels as a further "top log-probability" whose token id no vocabulary has. Client and
engine share this file; it imports neither torch nor vLLM.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from otter_cli.core.errors import OtterError
from otter_cli.core.suggest import closest
from otter_cli.signals import SignalConfig

# Far above any vocabulary, and it still fits the engine's int32.
VIRTUAL = 1 << 30
# What the engine's answer has room for; vLLM's --max-logprobs raises it.
USUAL_ROOM = 20


@dataclass(frozen=True)
class Number:
    """One of a signal's numbers: its only one, an attribute of a value, or a class."""

    signal: str
    index: int
    label: str | None = None


class Numbers:
    """Every number that the signals of a graft come to, in order."""

    def __init__(self, signals: Iterable[SignalConfig]) -> None:
        self.signals = {signal.name: signal for signal in signals}
        self.all: list[Number] = []
        for signal in self.signals.values():
            if signal.kind == "future":
                continue
            # Of action values, the one of the token that was chosen.
            count = 1 if signal.kind == "vocabulary" else signal.size
            labels = signal.labels or (None,) * count
            self.all += [Number(signal.name, i, label) for i, label in enumerate(labels)]

    @property
    def of_texts(self) -> list[Number]:
        """Those that score a text: an action value has a next token to score, which none is."""
        kinds = ("value", "classes")
        return [number for number in self.all if self.signals[number.signal].kind in kinds]

    def of(self, names: Iterable[str]) -> tuple[int, ...]:
        """Places in `all` of the numbers of the named signals. Raises OtterError."""
        places: list[int] = []
        for name in names:
            self.check(name)
            places += [i for i, number in enumerate(self.all) if number.signal == name]
        return tuple(places)

    def check(self, name: str) -> None:
        """Raises OtterError unless `name` is a signal of the graft that gives numbers."""
        if name not in self.signals:
            near = closest(name, self.signals)
            raise OtterError(
                f"there is no signal {name!r} in this graft",
                hint=(f"did you mean {near!r}? " if near else "")
                + f"its signals: {', '.join(self.signals) or 'none'}",
            )
        if self.signals[name].kind == "future":
            raise OtterError(
                f"signal {name!r} predicts tokens, it does not score them",
                hint="transformers drafts with it: otter generate --draft",
            )
