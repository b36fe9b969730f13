"""What one decoder layer of the base hands to the streams.

The stream of a layer reads four tensors of the base: the inputs of attention and FFN (x), the
output of the attention heads (a) and the activation of the FFN (m). For inserted heads the base's
own attention call is kept too, with its keys, values and mask. SelectedPositions narrows all of
them to the positions that a training step reads. See docs/method.md, "Reading the base"."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

# Above this share of a batch, selecting positions saves little. The bound was not measured.
_LARGEST_SHARE = 0.5


def flatten_tokens(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """[batch * tokens, ...], in `dtype` if given. Some modelling files flatten before the hook."""
    flat = tensor if tensor.ndim == 2 else tensor.reshape(-1, tensor.shape[-1])
    return flat if dtype is None or flat.dtype == dtype else flat.to(dtype)


class SelectedPositions:
    """N positions, given as (rows, columns), of a batch of `rows` by `tokens`. Raises IndexError
    as indexing a tensor does."""

    def __init__(self, at: tuple[Tensor, Tensor], rows: int, tokens: int) -> None:
        self.total = rows * tokens
        self.flat_indices = torch.arange(self.total, device=at[0].device).view(rows, tokens)[at]

    @property
    def worth_selecting(self) -> bool:
        return len(self.flat_indices) <= _LARGEST_SHARE * self.total

    def select(self, tensor: Tensor) -> Tensor:
        """[N, ...] of [rows, tokens, ...], flattened or not. A tensor of N rows stays as it is."""
        flat = flatten_tokens(tensor)
        return flat[self.flat_indices] if len(flat) == self.total else flat

    def scatter(self, values: Tensor, like: Tensor) -> Tensor:
        """`values` of the selected positions and zeros at all others, [*like.shape[:-1], width]."""
        flat = flatten_tokens(values)
        whole = flat.new_zeros(self.total, flat.shape[-1])
        whole[self.flat_indices] = flat
        return whole.view(*like.shape[:-1], -1)


@dataclass(slots=True)
class AttentionCall:
    """The arguments of the base's own attention call. Inserted heads repeat the call with other
    heads, so that no mask is rebuilt."""

    function: Callable[..., tuple[Tensor, Any]]
    module: nn.Module
    key: Tensor  # [batch, kv_heads, positions, head_dim], rotated, the cache included
    value: Tensor
    mask: Tensor | None
    arguments: dict[str, Any]
    # Masks in other dtypes, shared by the layers of a forward, most of which have the same mask.
    converted: dict[tuple[int, torch.dtype], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def mask_for(self, dtype: torch.dtype) -> Tensor | None:
        """The mask for queries of `dtype`: an additive mask is converted, once for all layers."""
        mask = self.mask
        if mask is None or not mask.is_floating_point() or mask.dtype == dtype:
            return mask
        key = id(mask), dtype
        if key not in self.converted:
            self.converted[key] = mask, mask.to(dtype)  # the mask keeps its id
        return self.converted[key][1]

    def release_keys_and_values(self) -> None:
        """Replaces both by empty tensors of the same number of slots."""
        self.key, self.value = (t.new_empty(*t.shape[:-1], 0) for t in (self.key, self.value))


class RegroupedAttention:
    """The base's attention module as an attention function sees it, with the insertion's own head
    grouping and sinks."""

    def __init__(self, module: nn.Module, groups: int, sinks: Tensor | None) -> None:
        self._module, self.num_key_value_groups = module, groups
        if sinks is not None:
            self.sinks = sinks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


@dataclass(slots=True)
class BranchActivations:
    """The activations of one branch: [batch, tokens, ...], or flattened to [batch * tokens, ...],
    or of N selected positions [N, ...]."""

    normed: Tensor  # x
    residual: Tensor | None  # h before the norm, where a norm of the stream reads it
    base_out: Tensor | None = None  # a or m, or the output of the whole branch
    branch_out: Tensor | None = None  # the input of the norm after the branch

    def select(self, selected: SelectedPositions) -> BranchActivations:
        """The activations at the selected positions, [N, ...]."""
        others = self.residual, self.base_out, self.branch_out
        return BranchActivations(
            selected.select(self.normed),
            *(None if t is None else selected.select(t) for t in others),
        )


@dataclass(slots=True)
class AttentionActivations(BranchActivations):
    kwargs: dict[str, Any] = field(default_factory=dict)  # of the attention module's call
    call: AttentionCall | None = None

    @property
    def embeddings(self) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines of the positions."""
        return self.kwargs.get("position_embeddings")

    @property
    def cache(self) -> Cache | None:
        return next((value for value in self.kwargs.values() if isinstance(value, Cache)), None)


@dataclass(frozen=True)
class LayerSite:
    """A decoder layer that carries inserted tensors."""

    index: int
    is_last: bool  # of the base
    apply_rotary: Callable[..., Any] | None  # the base's function; None: no rotation
    rotary_width: int  # how many numbers of a head are rotated


@dataclass(slots=True)
class LayerInput:
    """One layer of one forward: all that its stream reads of the base."""

    site: LayerSite
    attention: AttentionActivations
    ffn: BranchActivations
