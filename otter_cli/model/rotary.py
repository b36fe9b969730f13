"""The rotary embedding of the base's own modelling file, for inserted heads."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from otter_cli.families import Attention

Rotate = Callable[[Tensor], Tensor]


def rotation(
    module: nn.Module, embeddings: tuple[Tensor, Tensor] | None, block: Attention
) -> Rotate:
    """Rotates one tensor [batch, heads, tokens, head_dim] as the attention `module` does its own,
    by its cosines and sines; not at all in layers and families without a rotation."""
    turns = block.tap == "input" and (not block.rotary_if or getattr(module, block.rotary_if))
    if embeddings is None or not turns:
        return lambda heads: heads
    apply = sys.modules[type(module).__module__].apply_rotary_pos_emb
    cos, sin = embeddings

    def rotate(heads: Tensor) -> Tensor:
        # A part of each head only, in some families.
        width = getattr(module, "rotary_ndims", heads.shape[-1])
        turned = apply(heads[..., :width], heads[:, :1, :, :width], cos, sin)[0].to(heads.dtype)
        return torch.cat([turned, heads[..., width:]], -1) if width < heads.shape[-1] else turned

    return rotate
