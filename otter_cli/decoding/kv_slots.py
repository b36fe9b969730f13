"""The KV cache as slots [rows, heads, slots, head_dim], and the mask of a tree of tokens.

A step may hold more tokens than it keeps. `KVSlots` moves the kept entries into place and drops
the rest; `TreeMask` says which tokens of a step each token attends to.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, StaticLayer

from otter_cli.model.cache import GrowingCacheLayer


def full_cache(config: Any, *, length: int | None = None) -> Cache:
    """A cache that remembers every slot, in windowed layers too: what is left of a step of many
    tokens is known only after it. `length` preallocates that many slots."""
    cache = DynamicCache(config=config)
    cache.layers = [
        GrowingCacheLayer() if length is None else StaticLayer(length) for _ in cache.layers
    ]
    return cache


class KVSlots:
    """Moves entries within a cache; the insertions' own layers move along, and so do the `tokens`
    [rows, slots] that were fed, where they are to be remembered."""

    def __init__(self, cache: Cache, tokens: Tensor | None = None) -> None:
        self.cache, self.tokens = cache, tokens
        lengths = {lay.max_cache_len for lay in cache.layers if isinstance(lay, StaticLayer)}
        # How many slots there are to fill, where they are preallocated.
        self.capacity = min(lengths, default=None)

    def add(self, tokens: Tensor) -> None:
        """Remembers the tokens of further slots."""
        if self.tokens is not None:
            self.tokens = torch.cat([self.tokens, tokens], 1) if len(self.tokens) else tokens

    def move(self, source: int, target: int) -> None:
        """One slot of every row."""
        if self.tokens is not None:
            self.tokens[:, target] = self.tokens[:, source].clone()
        for entries in self._entries():
            entries.narrow(2, target, 1).copy_(entries.narrow(2, source, 1))

    def gather(self, at: int, index: Tensor) -> None:
        """Slots `at + index` [rows, m] of each row move to `at`, `at + 1`, ..."""
        stop, slots = at + index.shape[1], (at + index)[:, None, :, None]
        if self.tokens is not None:
            self.tokens[:, at:stop] = self.tokens.gather(
                1, (at + index).expand(len(self.tokens), -1)
            )
        for entries in self._entries():
            heads, width = entries.shape[1], entries.shape[3]
            entries[:, :, at:stop] = entries.gather(2, slots.expand(-1, heads, -1, width))

    def truncate(self, slots: int) -> None:
        if self.tokens is not None:
            self.tokens = self.tokens[:, :slots]
        for layer in self._layers():
            if isinstance(layer, StaticLayer):
                layer.cumulative_length.fill_(slots)
            elif isinstance(layer, GrowingCacheLayer):
                layer.truncate(slots)
            elif not layer.is_sliding:
                layer.keys, layer.values = layer.keys[:, :, :slots], layer.values[:, :, :slots]

    def select(self, rows: Tensor) -> None:
        """The rows become `rows`: reordered, repeated or fewer."""
        if self.tokens is not None:
            self.tokens = self.tokens[rows]
        for layer in self._layers():
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]

    def bytes(self) -> int:
        """What is held, room for more included."""
        entries = [*self._entries(), *self._states()]
        return sum(one.untyped_storage().nbytes() for one in entries)

    def dtype(self) -> torch.dtype:
        return self._layers()[0].dtype

    def _entries(self) -> list[Tensor]:
        """Of every layer, with what room there is behind them."""
        return [entries for layer in self._layers() for entries in _keys_and_values(layer)]

    def _layers(self) -> list[Any]:
        return [layer for layer in self.cache.layers if getattr(layer, "is_initialized", False)]

    def _states(self) -> list[Tensor]:
        """Of layers of linear attention, whose state has no slots."""
        kinds = ("conv_states", "recurrent_states")
        held = [
            getattr(lay, kind)
            for lay in self.cache.layers
            for kind in kinds
            if _has_recurrent_state(lay)
        ]
        return [state for states in held for state in states.values() if state is not None]


def _has_recurrent_state(layer: Any) -> bool:
    return hasattr(layer, "recurrent_states")


def _keys_and_values(layer: Any) -> tuple[Tensor, Tensor]:
    if isinstance(layer, GrowingCacheLayer):
        return layer.key_room, layer.value_room
    return layer.keys, layer.values


class TreeMask:
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
def tree_mask(parents: tuple[int, ...], device: torch.device) -> TreeMask:
    """Steps repeat the same few shapes: each is made once."""
    return TreeMask(parents, device)
