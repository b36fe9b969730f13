"""What one branch of a decoder layer adds to the inserted stream, and what it reads: METHOD, 1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from otter_cli.families import Attention, BaseShape, FeedForward
from otter_cli.insertion.config import InsertionConfig
from otter_cli.model.norms import PostNorm, StreamNorm


@dataclass
class AttentionCall:
    """What the base's own attention call was given, so that inserted heads repeat it and no mask is
    rebuilt."""

    function: Callable[..., tuple[Tensor, Any]]
    module: nn.Module
    key: Tensor  # [batch, kv_heads, positions, head_dim], rotated, the cache included
    value: Tensor
    mask: Tensor | None
    arguments: dict[str, Any]


@dataclass
class BranchTap:
    """What the hooks of one branch hand over, all [batch, tokens, ...]."""

    residual: Tensor  # h before the norm
    normed: Tensor  # x
    # z where the branch begins: in a parallel layer, where the layer does.
    entry: dict[str, Tensor]
    part: Tensor | None = None  # a or m, or the whole branch's output
    branch: Tensor | None = None  # what the norm after the branch is given
    rotate: Callable[[Tensor], Tensor] = field(default=lambda heads: heads)
    call: AttentionCall | None = None
    # Stores keys and values in the insertion's own cache layer and gives back all of them.
    remember: Callable[[str, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None


class TwoInputs(nn.Module):
    """`x W^h + u W^z (+ b)`; without inserted units only the first product."""

    def __init__(self, base: int, inserted: int, out: int, bias: bool) -> None:
        super().__init__()
        self.h = nn.Linear(base, out, bias=False)
        self.z = nn.Linear(inserted, out, bias=False) if inserted else None
        self.bias = nn.Parameter(torch.empty(out)) if bias else None

    def forward(self, x: Tensor, u: Tensor | None) -> Tensor:
        out = nn.functional.linear(x.to(self.h.weight.dtype), self.h.weight, self.bias)
        return out if self.z is None or u is None else out + self.z(u)


class InsertedBranch(nn.Module):
    """`z += P(t W^h + t' W^z)`: t the base's part, t' the inserted one, P the norm after the branch
    in families that have one."""

    def __init__(
        self,
        config: InsertionConfig,
        shape: BaseShape,
        block: Attention | FeedForward,
        thin: int,
    ) -> None:
        super().__init__()
        self.thin = thin
        if thin:
            self.norm = StreamNorm(config, shape)
        self.post_norm = PostNorm(config, shape) if block.post_norm else None

    def land(self, product: TwoInputs, name: str, z: Tensor, tap: BranchTap) -> Tensor:
        assert tap.part is not None
        mine = self.inserted(name, tap) if self.thin else None
        addition: Tensor = product(tap.part, mine)
        if self.post_norm is None:
            return z + addition
        assert tap.branch is not None
        return z + self.post_norm(addition, tap.branch)

    def inserted(self, name: str, tap: BranchTap) -> Tensor:
        raise NotImplementedError


def read_of(
    block: Attention | FeedForward, inner: int, hidden: int, bias: bool
) -> tuple[int, bool]:
    """Width of what the stream reads of a branch, and whether a bias is still to be added to it."""
    return (inner, bias) if block.tap == "input" else (hidden, False)
