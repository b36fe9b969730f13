"""What the hooks of one decoder layer capture from the base.

The stream of a layer reads four tensors of the base: the inputs of attention and FFN (x), the
attention heads' output (a) and the FFN's activation (m). For inserted heads the base's own
attention call is kept too, with its keys, values and mask. SelectedPositions narrows all of them
to the positions that a training step reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from otter_cli.model.fused_linear import flatten_tokens

# Of most of a batch there is little to leave out; where it stops paying was not measured.
_LARGEST_SHARE = 0.5


class SelectedPositions:
    """N positions, by their (texts, columns), of a batch of `texts` by `tokens`. Raises IndexError,
    as indexing a tensor does."""

    def __init__(self, at: tuple[Tensor, Tensor], texts: int, tokens: int) -> None:
        self.all = texts * tokens
        self.places = torch.arange(self.all, device=at[0].device).view(texts, tokens)[at]

    @property
    def few(self) -> bool:
        return len(self.places) <= _LARGEST_SHARE * self.all

    def of(self, tensor: Tensor) -> Tensor:
        """[N, ...], of [texts, tokens, ...] or rows of it; rows of the chosen alone stay."""
        flat = flatten_tokens(tensor)
        return flat[self.places] if len(flat) == self.all else flat

    def spread(self, found: Tensor, like: Tensor) -> Tensor:
        """What was found at the chosen positions, zeros at all others, [texts, tokens, ...]."""
        flat = flatten_tokens(found)
        whole = flat.new_zeros(self.all, flat.shape[-1])
        whole[self.places] = flat
        return whole.view(*like.shape[:-1], -1)


@dataclass(slots=True)
class AttentionCall:
    """What the base's own attention call was given, so that inserted heads repeat it and no mask is
    rebuilt."""

    function: Callable[..., tuple[Tensor, Any]]
    module: nn.Module
    key: Tensor  # [batch, kv_heads, positions, head_dim], rotated, the cache included
    value: Tensor
    mask: Tensor | None
    arguments: dict[str, Any]


@dataclass(slots=True)
class BranchActivations:
    """What the hooks of one branch hand over: [batch, tokens, ...], or flattened to rows, or those
    of the chosen positions alone."""

    normed: Tensor  # x
    residual: Tensor | None  # h before the norm, where a norm of the stream reads it
    part: Tensor | None = None  # a or m, or the whole branch's output
    branch: Tensor | None = None  # what the norm after the branch is given

    def at(self, chosen: SelectedPositions) -> BranchActivations:
        """At the chosen positions alone, [N, ...]."""
        each = self.residual, self.part, self.branch
        return BranchActivations(
            chosen.of(self.normed), *(None if one is None else chosen.of(one) for one in each)
        )


@dataclass(slots=True)
class AttentionActivations(BranchActivations):
    named: dict[str, Any] = field(default_factory=dict)  # what the attention module was called with
    call: AttentionCall | None = None

    @property
    def embeddings(self) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines of the positions."""
        return self.named.get("position_embeddings")

    @property
    def cache(self) -> Cache | None:
        return next((value for value in self.named.values() if isinstance(value, Cache)), None)
