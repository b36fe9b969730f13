"""Signals: the named outputs of heads, such as a reward, class logits or future tokens."""

from otter_cli.signals.config import KIND_ALIASES, SIGNAL_KINDS, SignalConfig, parse_signal
from otter_cli.signals.heads import (
    HEADS,
    ActionValueCost,
    FutureHead,
    SignalHead,
    Unembedding,
    VocabularyHead,
)

__all__ = [
    "HEADS",
    "KIND_ALIASES",
    "SIGNAL_KINDS",
    "ActionValueCost",
    "FutureHead",
    "SignalConfig",
    "SignalHead",
    "Unembedding",
    "VocabularyHead",
    "parse_signal",
]
