"""What a drafter proposes: a tree of tokens after the pending token, one shape for all rows.

A drafter is a frozen request; `Drafter.start` returns the object that drafts for one batch. A chain
is a tree whose tokens each have one child.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, product
from operator import mul
from typing import ClassVar

import torch
from torch import Tensor

from otter_cli.core.errors import OtterError
from otter_cli.decoding.hidden_states import HiddenStates
from otter_cli.decoding.session import DecodingSession

# The whole tree is one forward pass, and its mask is a square: published trees have 64 nodes.
_MAX_TREE_NODES = 1024


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
        check_tree_size(sum(accumulate(widths, mul)))
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
    def levels(self) -> list[TreeLevel]:
        """From the pending token's own guesses on."""
        found: list[TreeLevel] = []
        above: list[tuple[int, ...]] = [()]
        for depth in range(1, self.depth + 1):
            here = [path for path in self.paths if len(path) == depth]
            inner = [path for path in above if any(child[:-1] == path for child in here)]
            found.append(
                TreeLevel(
                    inner=[above.index(path) for path in inner],
                    parents=[inner.index(path[:-1]) for path in here],
                    ranks=[path[-1] for path in here],
                )
            )
            above = here
        return found


@dataclass(frozen=True)
class TreeLevel:
    """The nodes of one depth: `inner`, those of the level above that have children, by their
    places there; of each node its parent's place among these, and the rank of its guess."""

    inner: list[int]
    parents: list[int]
    ranks: list[int]


def check_tree_size(nodes: int) -> None:
    """Raises OtterError for an empty tree, and for more tokens than one pass can verify."""
    if nodes < 1:
        raise OtterError(f"a draft tree of {nodes} tokens", hint="at least 1")
    if nodes > _MAX_TREE_NODES:
        raise OtterError(
            f"a draft tree of {nodes:,} tokens is too large",
            hint=f"one pass verifies {_MAX_TREE_NODES:,} tokens at most; 3,2,1 is a usual tree",
        )


@dataclass
class Draft:
    """Tokens [rows, n]; `parents[i]` is the draft that token i follows, -1 the pending token;
    `counted` [rows, n]: which of them a row has at all. Of siblings the better ones come first."""

    tokens: Tensor
    parents: list[int]
    counted: Tensor

    @staticmethod
    def chain(tokens: Tensor, lengths: Tensor) -> Draft:
        """Each token after the one before it; the first `lengths` [rows] count."""
        n = tokens.shape[1]
        counted = torch.arange(n, device=tokens.device) < lengths[:, None]
        return Draft(tokens, list(range(-1, n - 1)), counted)

    @property
    def depths(self) -> list[int]:
        """Of each token, from 1."""
        found: list[int] = []
        for parent in self.parents:
            found.append(1 + (found[parent] if parent >= 0 else 0))
        return found

    def lengths(self) -> Tensor:
        """How far after the pending token each row's drafts reach, [rows]."""
        found = torch.zeros_like(self.counted.sum(1))
        for depth, counted in zip(self.depths, self.counted.unbind(1), strict=True):
            found = torch.where(counted, found.clamp(min=depth), found)
        return found

    @property
    def is_chain(self) -> bool:
        return self.parents == list(range(-1, len(self.parents) - 1))

    def within(self, depth: int) -> Draft:
        """The drafts that lie at most `depth` tokens after the pending one."""
        kept = [i for i, at in enumerate(self.depths) if at <= depth]
        place = {old: new for new, old in enumerate(kept)}
        parents = [place.get(self.parents[i], -1) for i in kept]
        return Draft(self.tokens[:, kept], parents, self.counted[:, kept])

    def children(self) -> Tensor:
        """[1 + n, widest]: the drafts that follow the pending token, draft 0, ...; -1 fills up."""
        found: list[list[int]] = [[] for _ in range(len(self.parents) + 1)]
        for node, parent in enumerate(self.parents):
            found[parent + 1].append(node)
        width = max(map(len, found))
        filled = [nodes + [-1] * (width - len(nodes)) for nodes in found]
        return torch.tensor(filled, dtype=torch.long, device=self.tokens.device)


class BatchDrafter(ABC):
    """A drafter at work on one batch; what it runs beside the base counts."""

    external_passes: int = 0
    external_bytes: int = 0

    def prefill(self, prompts: list[list[int]]) -> None:
        """Feeds the prompts to a model of its own, where there is one."""
        return

    @abstractmethod
    def draft(self, state: HiddenStates, texts: Sequence[Sequence[int]]) -> Draft:
        """After texts that end in the pending token, by the base's state [rows, 1, d] before it."""


class Drafter(ABC):
    """A frozen request for drafts."""

    name: ClassVar[str]
    paper: ClassVar[str]
    needs_stream: ClassVar[bool] = False

    @abstractmethod
    def start(self, session: DecodingSession) -> BatchDrafter:
        """Raises OtterError where the drafter can't work with the session's graft."""
