"""What a request to a served graft may ask for: signal outputs beside each token, and guidance.

An output travels as an extra "top log-probability" whose token id lies outside every vocabulary.
Requests are read from `vllm_xargs` (offline: `extra_args`). Client and engine share this file; it
imports neither torch nor vLLM.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from otter_cli.core.errors import OtterError, closest
from otter_cli.signals.config import SignalConfig

# Far above any vocabulary, and it still fits the engine's int32.
FIRST_VIRTUAL_ID = 1 << 30
# What the engine's answer has room for; vLLM's --max-logprobs raises it.
DEFAULT_MAX_LOGPROBS = 20


@dataclass(frozen=True)
class SignalOutput:
    """One of a signal's numbers: its only one, an attribute of a value, or a class."""

    signal: str
    index: int
    label: str | None = None


class SignalOutputs:
    """Every number that the signals of a graft come to, in order."""

    def __init__(self, signals: Iterable[SignalConfig]) -> None:
        self.signals = {signal.name: signal for signal in signals}
        self.all: list[SignalOutput] = []
        for signal in self.signals.values():
            if signal.kind == "future":
                continue
            # Of action values, the one of the token that was chosen.
            count = 1 if signal.kind == "vocabulary" else signal.size
            labels = signal.labels or (None,) * count
            self.all += [SignalOutput(signal.name, i, label) for i, label in enumerate(labels)]

    @property
    def of_texts(self) -> list[SignalOutput]:
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


ARGUMENT_PREFIX = "otter_"
ARGUMENTS = (
    "otter_signals",
    "otter_logprobs",
    "otter_guide",
    "otter_strength",
    "otter_candidates",
    "otter_entropy_above",
    "otter_top_below",
)


@dataclass(frozen=True)
class GuideRequest:
    """Q-style: `logit + sum of strength * score` over the `candidates` best logits (0: all).

    Gates: only where the base's entropy (nats) is above a bound, or its best probability below one.
    """

    strengths: tuple[tuple[str, float], ...]
    candidates: int = 10
    entropy_above: float | None = None
    top_below: float | None = None


@dataclass(frozen=True)
class SignalRequest:
    """`numbers`: places in Numbers.all of what is to stand beside each token; `logprobs`: whether
    log-probabilities are to stand there as well, which numbers only travel as."""

    numbers: tuple[int, ...]
    guide: GuideRequest | None
    logprobs: bool = True

    @property
    def silent(self) -> bool:
        """Numbers, and no log-probability of any token."""
        return bool(self.numbers) and not self.logprobs


def read_request(
    arguments: Mapping[str, Any] | None, numbers: SignalOutputs
) -> SignalRequest | None:
    """None where nothing is asked of the graft. Raises OtterError for what has no meaning."""
    mine = {
        key: value for key, value in (arguments or {}).items() if key.startswith(ARGUMENT_PREFIX)
    }
    if not mine:
        return None
    for key in mine:
        if key not in ARGUMENTS:
            near = closest(key, ARGUMENTS)
            raise OtterError(
                f"there is no argument {key!r}",
                hint=(f"did you mean {near!r}? " if near else "")
                + f"there are {', '.join(ARGUMENTS)}",
            )
    asked, guide = numbers.of(_names(mine.get("otter_signals"))), _read_guide(mine, numbers)
    logprobs = _boolean(mine, "otter_logprobs", True)
    return SignalRequest(asked, guide, logprobs) if asked or guide else None


def _read_guide(mine: Mapping[str, Any], numbers: SignalOutputs) -> GuideRequest | None:
    names = _names(mine.get("otter_guide"))
    strengths = _strengths(mine.get("otter_strength", 0.0), names)
    for name in names:
        numbers.check(name)
        if numbers.signals[name].kind != "vocabulary":
            raise OtterError(
                f"signal {name!r} cannot guide in this engine: it scores a text, no next token",
                hint="k candidates would have to go through the model as one step, which vLLM "
                "does not offer; use a vocabulary signal here, or otter generate --guide",
            )
    guide = GuideRequest(
        strengths=tuple((n, w) for n, w in zip(names, strengths, strict=True) if w != 0),
        candidates=_integer(mine, "otter_candidates", 10),
        entropy_above=_bound(mine, "otter_entropy_above"),
        top_below=_bound(mine, "otter_top_below"),
    )
    return guide if guide.strengths else None


def _names(value: Any) -> list[str]:
    """`a,b`, or a list of names."""
    parts = value.split(",") if isinstance(value, str) else value or []
    return list(dict.fromkeys(str(part).strip() for part in parts))


def _strengths(value: Any, names: list[str]) -> list[float]:
    """One for all of the guides, or one for each."""
    values = value if isinstance(value, list) else [value] * len(names)
    found = [_number("otter_strength", one) for one in values]
    if len(found) != len(names):
        raise OtterError(
            f"otter_strength has {len(found)} numbers for {len(names)} guides",
            hint="one number, or one for each name of otter_guide",
        )
    return found


def _bound(mine: Mapping[str, Any], key: str) -> float | None:
    return _number(key, mine[key]) if key in mine else None


def _boolean(mine: Mapping[str, Any], key: str, usual: bool) -> bool:
    value = mine.get(key, usual)
    if value not in (True, False):
        raise OtterError(f"{key} is {value!r}", hint="true or false")
    return bool(value)


def _integer(mine: Mapping[str, Any], key: str, usual: int) -> int:
    value = _number(key, mine.get(key, usual))
    if value < 0 or value != int(value):
        raise OtterError(f"{key} is {mine[key]!r}", hint="a whole number; 0 is the vocabulary")
    return int(value)


def _number(key: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise OtterError(f"{key} is {value!r}", hint="a number")
    return number
