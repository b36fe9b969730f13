"""Keyword arguments as transformers names them, as the decoding loop's settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from otter_cli.core.errors import OtterError

if TYPE_CHECKING:
    from otter_cli.decoding import Sampling, Stops


def sampling_of(
    max_new_tokens: int,
    do_sample: bool | None,
    temperature: float | None,
    top_k: int,
    top_p: float,
    seed: int,
) -> Sampling:
    """Greedy unless a temperature or `do_sample=True` asks for sampling. Raises OtterError."""
    from otter_cli.decoding import Sampling

    if do_sample and temperature == 0:
        raise OtterError("do_sample=True with temperature 0", hint="give a temperature above 0")
    if do_sample is False:
        heat = 0.0
    elif temperature is None:
        heat = 1.0 if do_sample else 0.0
    else:
        heat = temperature
    return Sampling(max_new_tokens, heat, top_k, top_p, seed)


def listed(names: str | Sequence[str] | None) -> list[str]:
    """One name, or several, as a list. A lone string is not taken for its letters."""
    return [names] if isinstance(names, str) else list(names or ())


def stops_of(
    strings: str | Sequence[str] | None, reject: str | Sequence[str], tokenizer: Any
) -> Stops:
    """Stop strings, and bounds such as "toxicity>0.9" that end a text. Raises OtterError."""
    from otter_cli.decoding import Stops
    from otter_cli.decoding.gates import parse_signal_bound

    bounds = tuple(map(parse_signal_bound, listed(reject)))
    return Stops(tuple(listed(strings)), bounds, tokenizer)
