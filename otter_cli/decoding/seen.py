"""Who sees whom in a step of several tokens: trees of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch


class Tree:
    """Tokens fed and not yet decided on, by their parents: -1 is the text so far."""

    def __init__(self, parents: Sequence[int], device: torch.device) -> None:
        self.parents = list(parents)
        depths: list[int] = []
        seen = torch.eye(len(self.parents), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if not -1 <= parent < node:
                raise ValueError(f"token {node} of a tree has parent {parent}")
            depths.append(0 if parent < 0 else depths[parent] + 1)
            if parent >= 0:
                seen[node] |= seen[parent]
        self.seen = seen.to(device)  # [n, n]: itself and what it follows
        self.depths = torch.tensor(depths, dtype=torch.long, device=device)  # [n], from 0

    def __len__(self) -> int:
        return len(self.parents)


@lru_cache(maxsize=32)
def tree_of(parents: tuple[int, ...], device: torch.device) -> Tree:
    """Steps repeat the same few shapes: each is made once."""
    return Tree(parents, device)
