"""Decoding: one session for plain, guided and speculative generation."""

from otter_cli.decoding.args_guide import ArgsGuide
from otter_cli.decoding.drafters import FutureDrafter, PromptLookup
from otter_cli.decoding.generate import generate
from otter_cli.decoding.session import DecodingSession, RewardSession
from otter_cli.decoding.signal_guide import SignalGuide
from otter_cli.decoding.state import State
from otter_cli.decoding.types import Counters, Generation, Sampling

__all__ = [
    "ArgsGuide",
    "Counters",
    "DecodingSession",
    "FutureDrafter",
    "Generation",
    "PromptLookup",
    "RewardSession",
    "Sampling",
    "SignalGuide",
    "State",
    "generate",
]
