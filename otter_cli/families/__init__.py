"""Model families, as data."""

from otter_cli.families.family import Attention, Family, FeedForward
from otter_cli.families.refused import REFUSED
from otter_cli.families.registry import FAMILIES, find_family
from otter_cli.families.rope import LengthRule, length_rule
from otter_cli.families.shape import BaseShape, base_shape

__all__ = [
    "FAMILIES",
    "REFUSED",
    "Attention",
    "BaseShape",
    "Family",
    "FeedForward",
    "LengthRule",
    "base_shape",
    "find_family",
    "length_rule",
]
