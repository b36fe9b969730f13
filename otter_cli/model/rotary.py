"""The rotary embedding of inserted heads.

Inserted heads are rotated by the function of the base's own modelling file. The usual function
(x cos plus sin times x with its halves swapped) is computed in fewer operations, with cosines and
sines prepared once for a forward."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from otter_cli.families.family import Attention

Rotate = Callable[[Tensor], Tensor]


def rotary_function(module: nn.Module, block: Attention) -> Callable[..., Any] | None:
    """The function that rotates queries and keys of the attention `module`; None in layers and
    families without a rotation."""
    rotates = block.read_at == "input" and (
        not block.rotary_flag or getattr(module, block.rotary_flag)
    )
    function = getattr(sys.modules[type(module).__module__], "apply_rotary_pos_emb", None)
    return function if rotates else None


class Rotations:
    """Rotations of heads [batch, tokens, heads, head_dim] in one forward, where most layers share
    their cosines and sines."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Tensor, Rotate]] = {}

    def rotate(
        self,
        heads: Tensor,
        apply: Callable[..., Any] | None,
        width: int,
        embeddings: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """Rotates the first `width` numbers of each head as `apply` does. Without it, none."""
        if apply is None or embeddings is None:
            return heads
        cos, sin = embeddings
        if not (width == heads.shape[-1] == cos.shape[-1] and rotates_halves(apply)):
            return _rotate_by_base(heads, apply, width, cos, sin)
        known = self._known.get(id(cos))
        if known is None or known[0] is not cos:
            known = self._known[id(cos)] = cos, _rotate_halves(cos, sin)
        rotated = known[1](heads)
        return rotated if rotated.dtype == heads.dtype else rotated.to(heads.dtype)


def _rotate_halves(cos: Tensor, sin: Tensor) -> Rotate:
    """`x cos + (-x2, x1) sin`. The sign goes to the sine, once."""
    half = cos.shape[-1] // 2
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    sin = torch.cat([-sin[..., :half], sin[..., half:]], -1)
    return lambda heads: torch.addcmul(heads * cos, heads.roll(half, -1), sin)


def _rotate_by_base(
    heads: Tensor, apply: Callable[..., Any], width: int, cos: Tensor, sin: Tensor
) -> Tensor:
    rotated = heads.transpose(1, 2)[..., :width]
    rotated = apply(rotated, rotated[:, :1], cos, sin)[0].to(heads.dtype).transpose(1, 2)
    return torch.cat([rotated, heads[..., width:]], -1) if width < heads.shape[-1] else rotated


@cache
def rotates_halves(apply: Callable[..., Any]) -> bool:
    """Whether a modelling file's function is the usual one, tried on small numbers."""
    numbers = torch.arange(1, 13, dtype=torch.float64, device="cpu").view(3, 4)
    heads, cos, sin = numbers[:1], numbers[1:2], numbers[2:]
    got = apply(heads[None, None], heads[None, None], cos[None], sin[None])[0]
    return torch.equal(got[0, 0], _rotate_halves(cos, sin)(heads[:, None])[:, 0])
