"""Shapes of draft trees, and how one is learnt from measured acceptance (Medusa, section 2.3)."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch

from otter_cli.core.errors import OtterError
from otter_cli.model import OtterForCausalLM


@dataclass(frozen=True)
class TreeShape:
    """Nodes by their paths: (0, 2) is head 2's third guess after head 1's first. A node's parent
    comes before it, and so do its better siblings."""

    paths: tuple[tuple[int, ...], ...]

    @staticmethod
    def of_widths(widths: Sequence[int]) -> TreeShape:
        """Every node at depth d has `widths[d]` children. Raises OtterError for none at all."""
        if not widths or min(widths) < 1:
            raise OtterError(
                f"a draft tree of widths {list(widths)}", hint="such as 3,2,1: each at least 1"
            )
        depths = range(1, len(widths) + 1)
        paths = [path for d in depths for path in product(*(range(w) for w in widths[:d]))]
        return TreeShape(tuple(paths))

    def __str__(self) -> str:
        """Its leaves, by the places of the guesses that lead to them: `0.0.0 0.1 1`."""
        inner = {path[:-1] for path in self.paths}
        leaves = sorted(path for path in self.paths if path not in inner)
        return " ".join(".".join(map(str, path)) for path in leaves)

    @property
    def depths(self) -> list[int]:
        return [len(path) for path in self.paths]

    @property
    def depth(self) -> int:
        return max(self.depths)

    @property
    def width(self) -> int:
        """How many guesses of a head it uses."""
        return 1 + max(path[-1] for path in self.paths)

    @property
    def parents(self) -> list[int]:
        place = {path: node for node, path in enumerate(self.paths)}
        return [place.get(path[:-1], -1) for path in self.paths]


def best_shape(acceptance: Sequence[Sequence[float]], nodes: int) -> TreeShape:
    """The tree of `nodes` drafts with the longest expected acceptance, where guess r of head d is
    right with probability `acceptance[d][r]`: a path's is their product, taken best first.
    Beyond a guess of a head that is never right its others are left out: there may be fewer."""
    if nodes < 1:
        raise OtterError(f"a draft tree of {nodes} tokens", hint="at least 1")
    found: list[tuple[int, ...]] = []
    heap: list[tuple[float, tuple[int, ...]]] = [(-acceptance[0][0], (0,))]
    while heap and len(found) < nodes:
        weight, path = heapq.heappop(heap)
        found.append(path)
        depth, rank = len(path), path[-1]
        row = acceptance[depth - 1]
        if rank + 1 < len(row) and row[rank] > 0:
            sibling = weight / row[rank] * row[rank + 1]
            heapq.heappush(heap, (sibling, (*path[:-1], rank + 1)))
        if depth < len(acceptance):
            heapq.heappush(heap, (weight * acceptance[depth][0], (*path, 0)))
    return TreeShape(tuple(sorted(found, key=lambda path: (len(path), path))))


def measured_acceptance(
    model: OtterForCausalLM,
    signal: str,
    texts: Sequence[Sequence[int]],
    ranks: int,
    *,
    since: Sequence[int] | None = None,
) -> list[list[float]]:
    """How often guess r of head d is the token that the text has there, [heads][ranks]. On text
    that the base wrote greedily, which begins at `since` (default: at once), that is its
    acceptance."""
    heads = model.signal_configs[signal].size
    hits, seen = torch.zeros(heads, ranks), torch.zeros(heads, 1)
    for text, start in zip(texts, since or [1] * len(texts), strict=True):
        tokens = torch.tensor([list(text)], device=model.device)
        with torch.no_grad():
            guesses = model(tokens, signals=(signal,), logits=False).signals[signal][0]
        for head in range(min(heads, len(text) - 2)):
            # The state before the first new token guesses those after it.
            best = guesses[start - 1 : len(text) - 2 - head, head].topk(ranks, -1).indices
            hits[head] += (best == tokens[0, start + 1 + head :, None]).sum(0).cpu()
            seen[head] += len(best)
    if not bool(seen.min()):
        raise OtterError(
            "no text to measure acceptance on", hint=f"texts of more than {heads + 1} tokens"
        )
    rates = (hits / seen).tolist()
    # A guess beyond the first is taken where those before it failed, so rates may only fall.
    return [[min(row[: r + 1], default=math.nan) for r in range(ranks)] for row in rates]
