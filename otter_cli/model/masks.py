"""4-d masks of tokens that do not simply see all before them: what a base is called with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

# Other attentions take no mask of one's own, or ignore it.
MASKED_ATTENTIONS = ("eager", "sdpa")


def windows_of(config: Any) -> list[int | None]:
    """How many positions each layer sees; None: all."""
    layers = DynamicCache(config=config).layers
    return [layer.sliding_window if layer.is_sliding else None for layer in layers]


def masks(
    seen: Tensor, distance: Tensor | None, windows: Sequence[int | None], dtype: torch.dtype
) -> Any:
    """The base's mask argument for queries that see `seen` [rows, n, slots]: one 4-d mask, or one
    for each layer type. Windows count positions, not slots: `distance` [rows, n, slots], which
    only they need.

    Numbers of `dtype` that attention adds: of booleans sdpa would make them in every layer again.
    """

    def mask(window: int | None) -> Tensor:
        if window is None:
            within = seen
        else:
            assert distance is not None
            within = seen & (distance < window)
        full = torch.zeros(within.shape, dtype=dtype, device=seen.device)
        return full.masked_fill_(~within, torch.finfo(dtype).min)[:, None]

    kinds = set(windows)
    if len(kinds) == 1:
        return mask(kinds.pop())
    (window,) = kinds - {None}
    return {"full_attention": mask(None), "sliding_attention": mask(window)}
