"""Guides by the names of signals: `reward` or `toxicity/insult`, each with a weight."""

from __future__ import annotations

from collections.abc import Mapping

from otter_cli.core.errors import OtterError
from otter_cli.decoding.guide import Guide
from otter_cli.decoding.scores import check_signal
from otter_cli.decoding.signal_guide import SignalGuide, VocabularyGuide
from otter_cli.model import OtterForCausalLM


def guide_of(
    model: OtterForCausalLM, name: str, weight: float, candidates: int, label: str | None = None
) -> Guide:
    """The guide for a signal SIGNAL[/LABEL]: one pass for each step where the signal scores next
    tokens (Q-style), a step of `candidates` tokens where it scores text (V-style). Raises
    OtterError where the graft has no such signal."""
    signal, _, own_label = name.partition("/")
    if check_signal(model, signal).kind == "vocabulary" and not own_label:
        return VocabularyGuide(signal, weight, candidates)
    record = model.manifest.training.get(signal)
    # A signal that never saw an end in training leaves the score of a text that ends as it is.
    end = record is None or record.end is not False
    return SignalGuide(signal, weight, candidates, own_label or label, end=end)


def guides_of(
    model: OtterForCausalLM, weights: Mapping[str, float], candidates: int
) -> list[Guide]:
    """A guide for each of the signals in `weights`. Raises OtterError."""
    return [guide_of(model, name, float(w), candidates) for name, w in weights.items()]


def parse_guide(text: str, default: float) -> tuple[str, float]:
    """Reads NAME[/LABEL][:WEIGHT]. Raises OtterError where the weight is not a number."""
    name, colon, weight = text.partition(":")
    try:
        return name, float(weight) if colon else default
    except ValueError:
        raise OtterError(f"guide {text!r}: {weight!r} is not a number", hint="reward:1.5") from None
