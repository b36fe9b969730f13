"""Decoding: one session for plain, guided and speculative generation."""

from otter_cli.decoding.best_of import BestOf, best_of
from otter_cli.decoding.generate import generate
from otter_cli.decoding.guides.external_models import (
    ArgsGuide,
    DExpertsGuide,
    GenArmGuide,
    RadGuide,
)
from otter_cli.decoding.guides.guide import Gate, Guide
from otter_cli.decoding.guides.signal_guides import SignalGuide, VocabularyGuide
from otter_cli.decoding.hidden_states import HiddenStates
from otter_cli.decoding.results import Generation, GenerationCounters, NearTie
from otter_cli.decoding.sampling import Sampling
from otter_cli.decoding.session import DecodingSession, ExpertSession, RewardSession
from otter_cli.decoding.speculative.acceptance import rescore_near_ties
from otter_cli.decoding.speculative.drafters import DraftModel, FutureDrafter, PromptLookup
from otter_cli.decoding.speculative.drafts import TreeShape
from otter_cli.decoding.speculative.learned_trees import learn_tree
from otter_cli.decoding.stopping import SignalBound, Stops

__all__ = [
    "ArgsGuide",
    "BestOf",
    "DExpertsGuide",
    "DecodingSession",
    "DraftModel",
    "ExpertSession",
    "FutureDrafter",
    "Gate",
    "GenArmGuide",
    "Generation",
    "GenerationCounters",
    "Guide",
    "HiddenStates",
    "NearTie",
    "PromptLookup",
    "RadGuide",
    "RewardSession",
    "Sampling",
    "SignalBound",
    "SignalGuide",
    "Stops",
    "TreeShape",
    "VocabularyGuide",
    "best_of",
    "generate",
    "learn_tree",
    "rescore_near_ties",
]
