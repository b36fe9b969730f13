"""Signals: what a head gives, under one name each."""

from otter_cli.signals.config import ALIASES, KINDS, SignalConfig, parse_signal
from otter_cli.signals.heads import HEADS

__all__ = ["ALIASES", "HEADS", "KINDS", "SignalConfig", "parse_signal"]
