"""Seeds that depend on names instead of on the order of calls."""

import hashlib
import random
import sys

import numpy as np


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from the parts' texts: the same on every machine and in every process."""
    # A separator that no part contains keeps ("ab", "c") apart from ("a", "bc").
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, numpy and, where it is loaded, torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # numpy's legacy generator takes 32 bits only
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(seed)
