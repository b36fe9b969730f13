"""What one request asks of a graft, read from its `vllm_xargs` (offline: `extra_args`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from otter_cli.core.errors import OtterError
from otter_cli.core.suggest import closest
from otter_cli.serving.vllm.numbers import Numbers

PREFIX = "otter_"
KEYS = (
    "otter_signals",
    "otter_logprobs",
    "otter_guide",
    "otter_strength",
    "otter_candidates",
    "otter_entropy_above",
    "otter_top_below",
)


@dataclass(frozen=True)
class Guide:
    """Q-style: `logit + sum of strength * score` over the `candidates` best logits (0: all).

    Gates: only where the base's entropy (nats) is above a bound, or its best probability below one.
    """

    strengths: tuple[tuple[str, float], ...]
    candidates: int = 10
    entropy_above: float | None = None
    top_below: float | None = None


@dataclass(frozen=True)
class Request:
    """`numbers`: places in Numbers.all of what is to stand beside each token; `logprobs`: whether
    log-probabilities are to stand there as well, which numbers only travel as."""

    numbers: tuple[int, ...]
    guide: Guide | None
    logprobs: bool = True

    @property
    def silent(self) -> bool:
        """Numbers, and no log-probability of any token."""
        return bool(self.numbers) and not self.logprobs


def read_request(arguments: Mapping[str, Any] | None, numbers: Numbers) -> Request | None:
    """None where nothing is asked of the graft. Raises OtterError for what has no meaning."""
    mine = {key: value for key, value in (arguments or {}).items() if key.startswith(PREFIX)}
    if not mine:
        return None
    for key in mine:
        if key not in KEYS:
            near = closest(key, KEYS)
            raise OtterError(
                f"there is no argument {key!r}",
                hint=(f"did you mean {near!r}? " if near else "") + f"there are {', '.join(KEYS)}",
            )
    asked, guide = numbers.of(_names(mine.get("otter_signals"))), _guide(mine, numbers)
    logprobs = _truth(mine, "otter_logprobs", True)
    return Request(asked, guide, logprobs) if asked or guide else None


def _guide(mine: Mapping[str, Any], numbers: Numbers) -> Guide | None:
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
    guide = Guide(
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


def _truth(mine: Mapping[str, Any], key: str, usual: bool) -> bool:
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
