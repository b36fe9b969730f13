"""Shapes of draft trees, and how one is learnt from measured acceptance (Medusa, section 2.3)."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, product
from operator import mul

import torch
from torch import Tensor

from otter_cli.core.errors import OtterError
from otter_cli.model import OtterForCausalLM

# The whole tree is one forward pass, and its mask is a square: published trees have 64 nodes.
_MOST_NODES = 1024


@dataclass(frozen=True)
class TreeShape:
    """Nodes by their paths: (0, 2) is head 2's third guess after head 1's first. Level by level: a
    node's parent comes before it, and so do its better siblings."""

    paths: tuple[tuple[int, ...], ...]

    @staticmethod
    def of_widths(widths: Sequence[int]) -> TreeShape:
        """Every node at depth d has `widths[d]` children. Raises OtterError for a width below 1,
        and for more nodes than one pass can verify."""
        if not widths or min(widths) < 1:
            raise OtterError(
                f"a draft tree of widths {list(widths)}", hint="such as 3,2,1: each at least 1"
            )
        check_nodes(sum(accumulate(widths, mul)))
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

    @cached_property
    def levels(self) -> list[Level]:
        """From the pending token's own guesses on."""
        found: list[Level] = []
        above: list[tuple[int, ...]] = [()]
        for depth in range(1, self.depth + 1):
            here = [path for path in self.paths if len(path) == depth]
            inner = [path for path in above if any(child[:-1] == path for child in here)]
            found.append(
                Level(
                    inner=[above.index(path) for path in inner],
                    parents=[inner.index(path[:-1]) for path in here],
                    ranks=[path[-1] for path in here],
                )
            )
            above = here
        return found


@dataclass(frozen=True)
class Level:
    """The nodes of one depth: `inner`, those of the level above that have children, by their
    places there; of each node its parent's place among these, and the rank of its guess."""

    inner: list[int]
    parents: list[int]
    ranks: list[int]


def check_nodes(nodes: int) -> None:
    """Raises OtterError for an empty tree, and for more tokens than one pass can verify."""
    if nodes < 1:
        raise OtterError(f"a draft tree of {nodes} tokens", hint="at least 1")
    if nodes > _MOST_NODES:
        raise OtterError(
            f"a draft tree of {nodes:,} tokens is too large",
            hint=f"one pass verifies {_MOST_NODES:,} tokens at most; 3,2,1 is a usual tree",
        )


def best_shape(acceptance: Sequence[Sequence[float]], nodes: int) -> TreeShape:
    """The tree of `nodes` drafts with the longest expected acceptance, where guess r of head d is
    right with probability `acceptance[d][r]`: a path's is their product, taken best first.
    Beyond a guess of a head that is never right its others are left out: there may be fewer."""
    check_nodes(nodes)
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
        guesses = _guesses(model, signal, tokens, heads)
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


def _guesses(model: OtterForCausalLM, signal: str, tokens: Tensor, heads: int) -> Tensor:
    """Logits [n, heads, vocab] at each of `tokens` [1, n]; of a cell, where its drafts so far are
    what the text has: those that were not are followed by nothing that counts."""
    following = torch.nn.functional.pad(tokens[0, 1:], (0, heads)).unfold(0, heads, 1)
    with torch.no_grad():
        out = model(tokens, signals=(), logits=False)
        v = {name: states[0] for name, states in out.inserted_state.items()}
        return model.read_signal(signal, out.base_state[0], v, following)
