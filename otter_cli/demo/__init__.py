"""The whole job in one command: on a real small model, or on the tiny base that ships.

The tiny base was trained on a small synthetic world, whose texts, gold rule and toxicity
classifier are here too.
"""

from pathlib import Path
from typing import Final

BASE: Final = Path(__file__).resolve().parent / "base"
"""The tiny base's checkpoint folder. Synthetic, as is every number measured on it."""
