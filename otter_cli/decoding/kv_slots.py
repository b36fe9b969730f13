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
    """A cache that keeps every slot, in windowed layers too, because what stays of a step of many
    tokens is known only after it. `length` preallocates that many slots."""
    cache = DynamicCache(config=config)
    cache.layers = [
        GrowingCacheLayer() if length is None else StaticLayer(length) for _ in cache.layers
    ]
    return cache


class KVSlots:
    """Moves entries within a cache, those of the insertions' layers included. `tokens` [rows,
    slots] are the tokens of all slots, where they may have to be fed again."""

    def __init__(self, cache: Cache, tokens: Tensor | None = None) -> None:
        self.cache, self.tokens = cache, tokens
        lengths = {lay.max_cache_len for lay in cache.layers if isinstance(lay, StaticLayer)}
        self.capacity = min(lengths, default=None)  # of a preallocated cache, in slots

    def add(self, tokens: Tensor) -> None:
        """Records the tokens of further slots."""
        if self.tokens is not None:
            self.tokens = torch.cat([self.tokens, tokens], 1) if len(self.tokens) else tokens

    def move(self, source: int, target: int) -> None:
        """Copies one slot of every row to another."""
        if self.tokens is not None:
            self.tokens[:, target] = self.tokens[:, source].clone()
        for entries in self._keys_and_values():
            entries.narrow(2, target, 1).copy_(entries.narrow(2, source, 1))

    def gather(self, start: int, index: Tensor) -> None:
        """Copies slots `start + index` [rows, m] of each row to `start`, `start + 1`, ..."""
        stop, slots = start + index.shape[1], (start + index)[:, None, :, None]
        if self.tokens is not None:
            self.tokens[:, start:stop] = self.tokens.gather(
                1, (start + index).expand(len(self.tokens), -1)
            )
        for entries in self._keys_and_values():
            heads, width = entries.shape[1], entries.shape[3]
            entries[:, :, start:stop] = entries.gather(2, slots.expand(-1, heads, -1, width))

    def truncate(self, slots: int) -> None:
        """Drops all slots after the first `slots`."""
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
        """Size of the cache in memory, preallocated room included."""
        tensors = [*self._keys_and_values(), *self._recurrent_states()]
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    def dtype(self) -> torch.dtype:
        return self._layers()[0].dtype

    def _keys_and_values(self) -> list[Tensor]:
        """Keys and values of every layer, preallocated slots included."""
        pairs = [
            (layer.key_buffer, layer.value_buffer)
            if isinstance(layer, GrowingCacheLayer)
            else (layer.keys, layer.values)
            for layer in self._layers()
        ]
        return [entries for pair in pairs for entries in pair]

    def _layers(self) -> list[Any]:
        return [layer for layer in self.cache.layers if getattr(layer, "is_initialized", False)]

    def _recurrent_states(self) -> list[Tensor]:
        """Of layers of linear attention, whose state has no slots."""
        by_layer = [
            getattr(layer, kind)
            for layer in self.cache.layers
            for kind in ("conv_states", "recurrent_states")
            if hasattr(layer, "recurrent_states")
        ]
        return [state for states in by_layer for state in states.values() if state is not None]


class TreeMask:
    """A tree of tokens that were fed and of which none is kept yet. `parents` are indices of
    tokens; -1 is the text before the tree."""

    def __init__(self, parents: Sequence[int], device: torch.device) -> None:
        self.parents = list(parents)
        depths: list[int] = []
        mask = torch.eye(len(self.parents), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if not -1 <= parent < node:
                raise ValueError(f"token {node} of a tree has parent {parent}")
            depths.append(0 if parent < 0 else depths[parent] + 1)
            if parent >= 0:
                mask[node] |= mask[parent]
        self.mask = mask.to(device)  # [n, n]: each token sees itself and its ancestors
        self.depths = torch.tensor(depths, dtype=torch.long, device=device)  # [n], from 0

    def __len__(self) -> int:
        return len(self.parents)


@lru_cache(maxsize=32)
def tree_mask(parents: tuple[int, ...], device: torch.device) -> TreeMask:
    """The tree of `parents`, cached: steps repeat the same few shapes."""
    return TreeMask(parents, device)
