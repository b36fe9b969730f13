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

from otter_cli.core.errors import OtterError, did_you_mean, label_index
from otter_cli.graft.config import InsertionConfig
from otter_cli.signals.comparisons import Comparison, parse_comparison
from otter_cli.signals.config import SignalConfig, unknown_signal

# Far above any vocabulary, and it still fits the engine's int32.
FIRST_VIRTUAL_ID = 1 << 30
# How vLLM writes a token by its id, where text would not tell tokens apart.
TOKEN_ID_PREFIX = "token_id:"
# vLLM's server clips log-probabilities here, and so the numbers that travel among them.
LOWEST_LOGPROB = -9999.0


def virtual_id(token: str) -> int | None:
    """The id in the text of a token of an answer, where it is the id of a signal output."""
    digits = token.removeprefix(TOKEN_ID_PREFIX) if token.startswith(TOKEN_ID_PREFIX) else ""
    return int(digits) if digits.isdecimal() and int(digits) >= FIRST_VIRTUAL_ID else None


def parse_insertions(described: Mapping[str, Any]) -> list[InsertionConfig]:
    """The insertions under "otter" in an export's config.json."""
    return [InsertionConfig.model_validate(config) for config in described["insertions"]]


@dataclass(frozen=True)
class SignalOutput:
    """One number of a signal: its only one, an attribute of a value, or a class."""

    signal: str
    index: int
    label: str | None = None


class SignalOutputs:
    """All numbers that the signals of a graft give, in order. Future signals give none."""

    def __init__(self, signals: Iterable[SignalConfig]) -> None:
        self.signals = {signal.name: signal for signal in signals}
        self.outputs: list[SignalOutput] = []
        for signal in self.signals.values():
            if signal.kind == "future":
                continue
            # Of action values, only the chosen token's is returned.
            count = 1 if signal.kind == "vocabulary" else signal.size
            labels = signal.labels or (None,) * count
            self.outputs += [SignalOutput(signal.name, i, label) for i, label in enumerate(labels)]

    @classmethod
    def of_insertions(cls, insertions: Iterable[InsertionConfig]) -> SignalOutputs:
        return cls(signal for config in insertions for signal in config.signals)

    @property
    def text_outputs(self) -> list[SignalOutput]:
        """The outputs that score a text. Action values score a next token, and a text has none."""
        kinds = ("value", "classes")
        return [output for output in self.outputs if self.signals[output.signal].kind in kinds]

    def places_of(self, names: Iterable[str]) -> tuple[int, ...]:
        """Indices in `outputs` of those of the named signals. Raises OtterError."""
        places: list[int] = []
        for name in names:
            self.check(name)
            places += [i for i, output in enumerate(self.outputs) if output.signal == name]
        return tuple(places)

    def check(self, name: str) -> None:
        """Raises OtterError unless `name` is a signal of the graft that gives numbers."""
        if name not in self.signals:
            raise unknown_signal(name, self.signals)
        if self.signals[name].kind == "future":
            raise OtterError(
                f"signal {name!r} predicts tokens, it does not score them",
                hint="transformers drafts with it: otter generate --draft",
            )


def returned_value(config: SignalConfig, number: float | None) -> float | None:
    """What a client gets for a number that a head gave: of classes the probability."""
    return sigmoid(number) if number is not None and config.kind == "classes" else number


def sigmoid(number: float) -> float:
    return 1 / (1 + math.exp(-number)) if number > -700 else 0.0


@dataclass(frozen=True)
class StopBound:
    """A bound at which an answer ends. `place`: the index in `SignalOutputs.outputs` of the number
    that it compares."""

    comparison: Comparison
    config: SignalConfig
    place: int

    def ends(self, number: float | None) -> bool:
        """Whether an answer ends at a number that a head gave. It ends at NaN (None), too: nothing
        says any more that the bound is kept."""
        if number is None or math.isnan(number) or number == math.inf:
            return True
        value = returned_value(self.config, max(number, LOWEST_LOGPROB))
        return value is not None and self.comparison.holds(value)

    def reason(self, number: float | None) -> str:
        """What ended the answer: the bound, or a number that is not finite."""
        if number is None or not math.isfinite(number):
            return f"{self.comparison}: the signal is not finite"
        return str(self.comparison)


ARGUMENT_PREFIX = "otter_"
ARGUMENTS = (
    "otter_signals",
    "otter_logprobs",
    "otter_guide",
    "otter_strength",
    "otter_candidates",
    "otter_entropy_above",
    "otter_top_below",
    "otter_stop_when",
)


@dataclass(frozen=True)
class GuideRequest:
    """Q-style guidance: `logit + sum of strength * score` over the `candidates` best tokens by
    logit (0: all tokens). Gates: only where the base's entropy (in nats) is above a bound, and the
    probability of its best token below one."""

    strengths: tuple[tuple[str, float], ...]
    candidates: int = 10
    entropy_above: float | None = None
    top_below: float | None = None


@dataclass(frozen=True)
class SignalRequest:
    """`outputs`: indices in `SignalOutputs.outputs` of the numbers to return beside each token.
    `logprobs`: whether to return log-probabilities too. Outputs only travel as
    log-probabilities. `stops`: the answer ends at the first token where one of them holds."""

    outputs: tuple[int, ...]
    guide: GuideRequest | None
    logprobs: bool = True
    stops: tuple[StopBound, ...] = ()

    @property
    def without_logprobs(self) -> bool:
        """Outputs, and no log-probability of any token."""
        return bool(self.outputs) and not self.logprobs


def read_request(
    arguments: Mapping[str, Any] | None, outputs: SignalOutputs
) -> SignalRequest | None:
    """The request in vLLM's extra arguments; None without any of ours. Raises OtterError."""
    own = {
        key: value for key, value in (arguments or {}).items() if key.startswith(ARGUMENT_PREFIX)
    }
    for key in own:
        if key not in ARGUMENTS:
            raise OtterError(
                f"there is no argument {key!r}",
                hint=did_you_mean(key, ARGUMENTS) + f"there are {', '.join(ARGUMENTS)}",
            )
    places, guide = outputs.places_of(_names(own.get("otter_signals"))), _read_guide(own, outputs)
    logprobs = _boolean(own, "otter_logprobs", True)
    stops = tuple(_read_stop(text, outputs) for text in _names(own.get("otter_stop_when")))
    if not (places or guide or stops):
        return None
    return SignalRequest(places, guide, logprobs, stops)


def _read_stop(text: str, outputs: SignalOutputs) -> StopBound:
    comparison = parse_comparison(text)
    outputs.check(comparison.signal)
    config = outputs.signals[comparison.signal]
    if config.kind == "vocabulary":
        raise OtterError(
            f"signal {config.name!r} cannot end an answer: it scores next tokens, no text",
            hint="give a value or class signal",
        )
    if comparison.number <= LOWEST_LOGPROB:
        raise OtterError(
            f"{comparison} is below {LOWEST_LOGPROB:g}, the lowest number in an answer of vLLM",
            hint="give a higher bound",
        )
    index = label_index(comparison.label, config.labels, f"signal {config.name!r}")
    return StopBound(comparison, config, outputs.places_of([config.name])[index])


def _read_guide(own: Mapping[str, Any], outputs: SignalOutputs) -> GuideRequest | None:
    names = _names(own.get("otter_guide"))
    strengths = _strengths(own.get("otter_strength", 0.0), names)
    for name in names:
        outputs.check(name)
        if outputs.signals[name].kind != "vocabulary":
            raise OtterError(
                f"signal {name!r} cannot guide in this engine: it scores a text, no next token",
                hint="k candidates would have to go through the model as one step, which vLLM "
                "does not offer; use a vocabulary signal here, or otter generate --guide",
            )
    guide = GuideRequest(
        strengths=tuple((n, w) for n, w in zip(names, strengths, strict=True) if w != 0),
        candidates=_integer(own, "otter_candidates", 10),
        entropy_above=_bound(own, "otter_entropy_above"),
        top_below=_bound(own, "otter_top_below"),
    )
    return guide if guide.strengths else None


def _names(value: Any) -> list[str]:
    """`a,b`, or a list of names."""
    parts = value.split(",") if isinstance(value, str) else value or []
    return list(dict.fromkeys(str(part).strip() for part in parts))


def _strengths(value: Any, names: list[str]) -> list[float]:
    """One strength for all guides, or one for each."""
    values = value if isinstance(value, list) else [value] * len(names)
    strengths = [_number("otter_strength", each) for each in values]
    if len(strengths) != len(names):
        raise OtterError(
            f"otter_strength has {len(strengths)} numbers for {len(names)} guides",
            hint="one number, or one for each name of otter_guide",
        )
    return strengths


def _bound(own: Mapping[str, Any], key: str) -> float | None:
    return _number(key, own[key]) if key in own else None


def _boolean(own: Mapping[str, Any], key: str, default: bool) -> bool:
    value = own.get(key, default)
    if value not in (True, False):
        raise OtterError(f"{key} is {value!r}", hint="true or false")
    return bool(value)


def _integer(own: Mapping[str, Any], key: str, default: int) -> int:
    value = _number(key, own.get(key, default))
    if value < 0 or value != int(value):
        raise OtterError(f"{key} is {own[key]!r}", hint="a whole number; 0 is the vocabulary")
    return int(value)


def _number(key: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise OtterError(f"{key} is {value!r}", hint="a number")
    return number
