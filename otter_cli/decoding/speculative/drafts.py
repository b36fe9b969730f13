"""What a drafter proposes: a tree of tokens after the pending token, one shape for all rows.

The pending token is chosen but not fed yet. A drafter is a frozen request; `Drafter.start` returns
the object that drafts for one batch. A chain is a tree whose tokens each have one child.
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
from otter_cli.decoding.kv_session import HiddenStates
from otter_cli.decoding.results import ExternalModels
from otter_cli.decoding.session import DecodingSession

# The whole tree is one forward pass with a square mask; published trees have 64 nodes.
_MAX_TREE_NODES = 1024


@dataclass(frozen=True)
class TreeShape:
    """A draft tree, as the paths of its nodes: (0, 2) is head 2's third guess after head 1's first
    guess. Parents come before their children, and better siblings before others."""

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
        """The paths of its leaves, by ranks of the guesses: `0.0.0 0.1 1`."""
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
        """Of each node the index of its parent; -1 is the pending token."""
        index = {path: node for node, path in enumerate(self.paths)}
        return [index.get(path[:-1], -1) for path in self.paths]

    @cached_property
    def levels(self) -> list[TreeLevel]:
        """One level for each depth, from the children of the pending token on."""
        levels: list[TreeLevel] = []
        above: list[tuple[int, ...]] = [()]
        for depth in range(1, self.depth + 1):
            nodes = [path for path in self.paths if len(path) == depth]
            inner = [path for path in above if any(child[:-1] == path for child in nodes)]
            levels.append(
                TreeLevel(
                    inner=[above.index(path) for path in inner],
                    parents=[inner.index(path[:-1]) for path in nodes],
                    ranks=[path[-1] for path in nodes],
                )
            )
            above = nodes
        return levels


@dataclass(frozen=True)
class TreeLevel:
    """The nodes of one depth. `inner`: indices of those nodes of the level above that have
    children. `parents`: of each node, the index of its parent among `inner`. `ranks`: of each node,
    the rank of its guess."""

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
    """Tokens [rows, n] after the pending token. `parents[i]` is the draft that token i follows; -1
    is the pending token. `valid` [rows, n]: which of the tokens a row has; the others are padding.
    Better siblings come first."""

    tokens: Tensor
    parents: list[int]
    valid: Tensor

    @staticmethod
    def chain(tokens: Tensor, lengths: Tensor) -> Draft:
        """Each token follows the one before it; the first `lengths` [rows] are valid."""
        n = tokens.shape[1]
        valid = torch.arange(n, device=tokens.device) < lengths[:, None]
        return Draft(tokens, list(range(-1, n - 1)), valid)

    @property
    def depths(self) -> list[int]:
        """Of each token, from 1."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 + (depths[parent] if parent >= 0 else 0))
        return depths

    def lengths(self) -> Tensor:
        """The depth of each row's valid drafts, [rows]."""
        lengths = torch.zeros_like(self.valid.sum(1))
        for depth, valid in zip(self.depths, self.valid.unbind(1), strict=True):
            lengths = torch.where(valid, lengths.clamp(min=depth), lengths)
        return lengths

    @property
    def is_chain(self) -> bool:
        return self.parents == list(range(-1, len(self.parents) - 1))

    def truncated(self, depth: int) -> Draft:
        """The drafts at most `depth` tokens after the pending token."""
        kept = [i for i, own_depth in enumerate(self.depths) if own_depth <= depth]
        new_index = {old: new for new, old in enumerate(kept)}
        parents = [new_index.get(self.parents[i], -1) for i in kept]
        return Draft(self.tokens[:, kept], parents, self.valid[:, kept])

    def children(self) -> Tensor:
        """Indices of the drafts after the pending token, draft 0, ...: [1 + n, most children]. -1
        is padding."""
        children: list[list[int]] = [[] for _ in range(len(self.parents) + 1)]
        for node, parent in enumerate(self.parents):
            children[parent + 1].append(node)
        width = max(map(len, children))
        padded = [nodes + [-1] * (width - len(nodes)) for nodes in children]
        return torch.tensor(padded, dtype=torch.long, device=self.tokens.device)


class BatchDrafter(ExternalModels, ABC):
    """Drafts for one batch."""

    @abstractmethod
    def draft(self, state: HiddenStates, texts: Sequence[Sequence[int]]) -> Draft:
        """Drafts after `texts`, which end in the pending token. `state` [rows, 1, d] is that of the
        token before the pending one."""


class Drafter(ABC):
    """A frozen request for drafts."""

    name: ClassVar[str]
    paper: ClassVar[str]
    needs_stream: ClassVar[bool] = False

    @abstractmethod
    def start(self, session: DecodingSession) -> BatchDrafter:
        """Raises OtterError where the drafter does not work with the session's graft."""
