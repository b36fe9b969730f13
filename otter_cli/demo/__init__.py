"""The whole job in one command, on a real small model or on the tiny base that ships.

The tiny base was trained on text of a small synthetic world. This package also holds the writer of
that text, the gold rule that scores it, and a toxicity classifier for it.
"""

from pathlib import Path
from typing import Final

BASE: Final = Path(__file__).resolve().parent / "base"
"""The tiny base's checkpoint folder. Synthetic, as is every number measured on it."""
