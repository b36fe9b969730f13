"""Decoding: one session for plain, guided and speculative generation."""

from otter_cli.decoding.best_of import BestOf, best_of
from otter_cli.decoding.draft_trees import TreeShape
from otter_cli.decoding.drafters import DraftModel, FutureDrafter, PromptLookup
from otter_cli.decoding.exactly import both_paths
from otter_cli.decoding.expert_guides import DExpertsGuide, GenArmGuide
from otter_cli.decoding.gates import Gate, SignalBound
from otter_cli.decoding.generate import generate
from otter_cli.decoding.guide import Guide
from otter_cli.decoding.learnt_trees import learnt_tree
from otter_cli.decoding.reward_guides import ArgsGuide, RadGuide
from otter_cli.decoding.session import DecodingSession, ExpertSession, RewardSession
from otter_cli.decoding.signal_guide import SignalGuide, VocabularyGuide
from otter_cli.decoding.state import State
from otter_cli.decoding.stops import Stops
from otter_cli.decoding.types import Counters, Generation, NearTie, Sampling

__all__ = [
    "ArgsGuide",
    "BestOf",
    "Counters",
    "DExpertsGuide",
    "DecodingSession",
    "DraftModel",
    "ExpertSession",
    "FutureDrafter",
    "Gate",
    "GenArmGuide",
    "Generation",
    "Guide",
    "NearTie",
    "PromptLookup",
    "RadGuide",
    "RewardSession",
    "Sampling",
    "SignalBound",
    "SignalGuide",
    "State",
    "Stops",
    "TreeShape",
    "VocabularyGuide",
    "best_of",
    "both_paths",
    "generate",
    "learnt_tree",
]
