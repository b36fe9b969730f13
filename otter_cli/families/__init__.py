"""Model families, as data: where their modules are, their sizes, and what is supported."""

from otter_cli.families.entries import REFUSED_FAMILIES
from otter_cli.families.family import Attention, Family, FeedForward
from otter_cli.families.registry import FAMILIES, find_family
from otter_cli.families.rope import LengthRule, length_rule
from otter_cli.families.shape import BaseShape, base_shape

__all__ = [
    "FAMILIES",
    "REFUSED_FAMILIES",
    "Attention",
    "BaseShape",
    "Family",
    "FeedForward",
    "LengthRule",
    "base_shape",
    "find_family",
    "length_rule",
]
