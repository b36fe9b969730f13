"""When to guide: only where the base hesitates, or where a signal says so."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from otter_cli.core.errors import OtterError
from otter_cli.decoding.scores import score_column, signal_scores
from otter_cli.decoding.session import DecodingSession
from otter_cli.decoding.state import State
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

    def scores(self, session: DecodingSession, states: State) -> Tensor:
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


@dataclass(frozen=True)
class Gate:
    """Open where every condition holds: the entropy of the base's next token (nats) is above a
    bound, the probability of its best token below one, a signal of the text so far past one."""

    entropy: float | None = None
    top_probability: float | None = None
    signal: SignalBound | None = None

    def __post_init__(self) -> None:
        for what in (self.entropy, self.top_probability):
            if what is not None and not math.isfinite(what):
                raise OtterError(f"a gate at {what}", hint="a number")

    @property
    def needs_stream(self) -> bool:
        return self.signal is not None

    def opened(self, session: DecodingSession, state: State, logits: Tensor) -> Tensor:
        """[rows], by the base's logits [rows, vocab] and the states [rows, 1, d] they come from."""
        log_p = logits.float().log_softmax(-1)
        opened = log_p[:, 0] == log_p[:, 0]
        if self.entropy is not None:
            # 0 log 0 is 0, where a token is ruled out.
            terms = (log_p.exp() * log_p).nan_to_num(0.0)
            opened = opened & (-terms.sum(-1) > self.entropy)
        if self.top_probability is not None:
            opened = opened & (log_p.amax(-1).exp() < self.top_probability)
        if self.signal is not None:
            opened = opened & self.signal.crossed(self.signal.scores(session, state)[:, 0])
        return opened


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


def parse_gate(texts: list[str]) -> Gate | None:
    """Reads `entropy>1.5`, `p<0.6` and `SIGNAL>0.5`, all of which must hold. Raises OtterError."""
    entropy, top, signal = None, None, None
    for text in texts:
        name, above, number = parse_bound(text)
        if name == "entropy" and above:
            entropy = number
        elif name == "p" and not above:
            top = number
        elif name in ("entropy", "p") or signal is not None:
            raise OtterError(
                f"gate {text!r} can't be", hint="entropy>X, p<X, and one signal's bound"
            )
        else:
            signal = parse_signal_bound(text)
    return Gate(entropy, top, signal) if texts else None


def parse_signal_bound(text: str) -> SignalBound:
    """Reads `toxicity>0.5` and `toxicity.insult>0.5`. Raises OtterError."""
    name, above, number = parse_bound(text)
    signal, dot, label = name.partition(".")
    return SignalBound(signal, number, above, label if dot else None)
