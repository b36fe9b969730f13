"""Decoding: one session for plain, guided and speculative generation."""

from otter_cli.decoding.drafters import FutureDrafter, PromptLookup
from otter_cli.decoding.generate import generate
from otter_cli.decoding.guides import ArgsGuide, SignalGuide
from otter_cli.decoding.session import DecodingSession, RewardSession, State
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
