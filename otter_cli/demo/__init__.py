"""A small synthetic world, and the tiny base that was trained on it and ships with the package."""

from pathlib import Path
from typing import Final

BASE: Final = Path(__file__).resolve().parent / "base"
"""The tiny base's checkpoint folder. Synthetic, as is every number measured on it."""
