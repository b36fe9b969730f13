"""Attention masks with four dimensions, for tokens that do not see all earlier tokens.

Candidates, draft trees and prompts that share a prefix need them. The masks include the sliding
windows and chunks of the base's layers, which count positions, not cache slots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

# Other attention implementations take no mask of the caller, or ignore it.
MASKED_ATTENTIONS = ("eager", "sdpa")


class AttentionWindow(NamedTuple):
    """The last `size` positions or, if `chunked`, those of the same chunk of `size` positions."""

    size: int
    chunked: bool = False

    @property
    def layer_type(self) -> str:
        return "chunked_attention" if self.chunked else "sliding_attention"

    def holds(self, query: Tensor, slots: Tensor) -> Tensor:
        """Whether positions `query` [rows, n] see positions `slots` [rows, m]: [rows, n, m]."""
        query, slots = query[:, :, None], slots[:, None]
        if self.chunked:
            return slots // self.size == query // self.size
        return query - slots < self.size


def attention_windows(config: Any) -> list[AttentionWindow | None]:
    """The window of each layer; None: it sees all positions."""
    layers = DynamicCache(config=config).layers
    # The cache has one class for windows and chunks. llama4 is the family with chunks.
    types = getattr(config, "layer_types", None) or [""] * len(layers)
    chunked = getattr(config, "attention_chunk_size", None) is not None
    return [
        AttentionWindow(layer.sliding_window, kind == "chunked_attention" or (chunked and not kind))
        if getattr(layer, "is_sliding", False)
        else None
        for layer, kind in zip(layers, types, strict=False)
    ]


def is_recurrent(config: Any) -> bool:
    """Whether a layer has a recurrent state. Tokens can't be removed from it or masked."""
    layers = DynamicCache(config=config).layers
    return any(not hasattr(layer, "is_sliding") for layer in layers)


def attention_masks(
    seen: Tensor,
    positions: tuple[Tensor, Tensor] | None,
    windows: Sequence[AttentionWindow | None],
    dtype: torch.dtype,
) -> Any:
    """The base's mask argument for queries that see `seen` [rows, n, slots]: one 4-d mask, or one
    for each layer type. `positions` of the queries [rows, n] and of the slots [rows, slots] are
    needed with windows only.

    Masks are additive, of `dtype`: sdpa would convert booleans in every layer.
    """

    def mask(window: AttentionWindow | None) -> Tensor:
        if window is None:
            within = seen
        else:
            assert positions is not None
            within = seen & window.holds(*positions)
        full = torch.zeros(within.shape, dtype=dtype, device=seen.device)
        return full.masked_fill_(~within, torch.finfo(dtype).min)[:, None]

    kinds = set(windows)
    if len(kinds) == 1:
        return mask(kinds.pop())
    (window,) = kinds - {None}
    assert window is not None
    return {"full_attention": mask(None), window.layer_type: mask(window)}
