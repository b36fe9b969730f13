"""Model families, as data."""

from otter_cli.families.family import Attention, BaseShape, Family, FeedForward
from otter_cli.families.registry import FAMILIES, REFUSED, base_shape, find_family

__all__ = [
    "FAMILIES",
    "REFUSED",
    "Attention",
    "BaseShape",
    "Family",
    "FeedForward",
    "base_shape",
    "find_family",
]
