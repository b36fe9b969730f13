"""Which inserted heads and units each rank of a tensor-parallel engine holds, and where.

The engine's attention needs the same number of query heads for every key/value head, and the same
number of both on every rank. Places without an inserted head are zero heads, which add nothing. A
backend that can read a slice of a cache's heads (`cpu/kv_cache.py`) needs no zero heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from otter_cli.families.shape import BaseShape
from otter_cli.graft.config import InsertionConfig, round_up

EMPTY = -1


@dataclass(frozen=True)
class RankLayout:
    """The layout of one insertion on rank `rank` of `ranks`."""

    config: InsertionConfig
    shape: BaseShape
    ranks: int = 1
    rank: int = 0

    @cached_property
    def all_heads(self) -> list[int]:
        """The inserted query head at each place of all ranks, grouped by key/value head; EMPTY for
        a zero head."""
        config = self.config
        if not config.heads:
            return []
        share = config.heads // config.kv_heads
        if config.kv == "own":
            first, count = 0, round_up(config.kv_heads, self.ranks)
            group = share
        else:
            first, count = config.kv_start, self.shape.kv_heads
            # Ranks that share a key/value head split its query heads.
            group = round_up(share, max(1, self.ranks // count))
        return [
            (kv - first) * share + query
            if first <= kv < first + config.kv_heads and query < share
            else EMPTY
            for kv in range(count)
            for query in range(group)
        ]

    @property
    def zero_heads(self) -> int:
        return self.all_heads.count(EMPTY)

    @cached_property
    def heads(self) -> list[int]:
        """The inserted query head at each place of this rank."""
        return self._of_rank(self.all_heads)

    @cached_property
    def kv_heads(self) -> list[int]:
        """Inserted key/value heads of this rank, with `kv: own`."""
        own = self.config.kv_heads if self.config.kv == "own" and self.config.heads else 0
        return self._of_rank(_padded_places(own, self.ranks))

    @cached_property
    def units(self) -> list[int]:
        """Inserted FFN units of this rank."""
        return self._of_rank(_padded_places(self.config.ffn, self.ranks))

    def base_columns(self, width: int) -> list[int]:
        """This rank's columns of a base activation of `width` columns: attention output or m."""
        return self._of_rank(list(range(width)))

    def rows_of_heads(self, heads: list[int]) -> list[int]:
        """Rows of a projection that belong to the given heads."""
        c = self.shape.head_dim
        return [EMPTY if head == EMPTY else head * c + i for head in heads for i in range(c)]

    def _of_rank(self, places: list[int]) -> list[int]:
        share = len(places) // self.ranks
        return places[self.rank * share : (self.rank + 1) * share]


@dataclass(frozen=True)
class TrainedHeads:
    """The trained heads of one rank: side by side, with zero heads `before` and `after` them. A
    rank without trained heads keeps one zero head, so that no product is empty."""

    heads: list[int]
    before: int
    after: int

    @classmethod
    def of(cls, places: list[int]) -> TrainedHeads:
        trained = [i for i, place in enumerate(places) if place != EMPTY] or [0]
        first, end = trained[0], trained[-1] + 1
        return cls(places[first:end], first, len(places) - end)

    @property
    def places(self) -> int:
        return self.before + len(self.heads) + self.after

    def pad(self, states: Tensor, size: int) -> Tensor:
        """[tokens, trained * size] to [tokens, places * size]: adds the zero heads."""
        if not self.before and not self.after:
            return states
        return F.pad(states, (self.before * size, self.after * size))

    def unpad(self, states: Tensor, size: int) -> Tensor:
        """[tokens, places * size] to [tokens, trained * size]: drops the zero heads."""
        return states.narrow(-1, self.before * size, len(self.heads) * size)


@dataclass(frozen=True)
class KVSlice:
    """`count` key/value heads of a rank, from `first` on."""

    first: int
    count: int

    @classmethod
    def of(cls, queries: TrainedHeads, group: int) -> KVSlice:
        """The key/value heads that trained query heads read; each serves `group` places."""
        first, end = queries.before // group, queries.before + len(queries.heads)
        return cls(first, -(-end // group) - first)


def select_places(tensor: Tensor, places: list[int], dim: int = 0) -> Tensor:
    """Rows (columns) at `places`; zeros at EMPTY."""
    zero = torch.zeros_like(tensor.narrow(dim, 0, 1))
    padded = torch.cat([tensor, zero], dim)
    index = torch.tensor([p if p != EMPTY else tensor.shape[dim] for p in places])
    return padded.index_select(dim, index)


def _padded_places(count: int, ranks: int) -> list[int]:
    return [i if i < count else EMPTY for i in range(round_up(count, ranks))]
