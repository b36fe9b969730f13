"""Signals as numbers to show and to guide by."""

from __future__ import annotations

from torch import Tensor

from otter_cli.core.errors import OtterError
from otter_cli.core.suggest import closest, label_index
from otter_cli.decoding.session import DecodingSession
from otter_cli.decoding.state import State
from otter_cli.model import OtterForCausalLM
from otter_cli.signals import SignalConfig
from otter_cli.signals.finite import probabilities


def signal_scores(session: DecodingSession, name: str, state: State) -> Tensor:
    """Scores of a signal, [rows, n, attributes or classes]: values as they are, probabilities.
    They may not be finite."""
    config = session.model.signal_configs[name]
    scores = session.read(name, state)
    if config.kind == "classes":
        return probabilities(scores)
    return scores[..., None] if config.size == 1 else scores


def check_signal(model: OtterForCausalLM, name: str) -> SignalConfig:
    """What the graft says of a signal. Raises OtterError where it has none of that name."""
    known = model.signal_configs
    if name not in known:
        near = closest(name, known)
        raise OtterError(
            f"there is no signal {name!r} in this graft",
            hint=(f"did you mean {near!r}? " if near else "")
            + f"its signals: {', '.join(known) or 'none'}",
        )
    return known[name]


def check_scores(model: OtterForCausalLM, name: str) -> None:
    """Raises OtterError where `name` is no signal of the graft, or one that scores no text."""
    kind = check_signal(model, name).kind
    if kind == "future":
        raise OtterError(
            f"signal {name!r} predicts tokens, it does not score them",
            hint=f"use it to draft: --draft {name}",
        )
    if kind == "vocabulary":
        raise OtterError(
            f"signal {name!r} scores tokens that could come, not the text so far",
            hint=f"use it to guide: --guide {name}",
        )


def score_column(model: OtterForCausalLM, name: str, label: str | None) -> int:
    """Which of a signal's scores is called `label`; the first by default. Raises OtterError."""
    check_scores(model, name)
    return label_index(label, model.signal_configs[name].labels, f"signal {name!r}")
