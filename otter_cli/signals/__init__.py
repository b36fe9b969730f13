"""Signals: what a head gives, under one name each."""

from otter_cli.signals.config import ALIASES, KINDS, SignalConfig, parse_signal
from otter_cli.signals.future import Future
from otter_cli.signals.head import Head, Unembedding
from otter_cli.signals.heads import HEADS
from otter_cli.signals.vocabulary import Vocabulary, Work

__all__ = [
    "ALIASES",
    "HEADS",
    "KINDS",
    "Future",
    "Head",
    "SignalConfig",
    "Unembedding",
    "Vocabulary",
    "Work",
    "parse_signal",
]
