"""The norms of the inserted stream: before a branch, after it, and of queries and keys."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from otter_cli.families import BaseShape
from otter_cli.insertion.config import InsertionConfig


class StreamNorm(nn.Module):
    """`u = z / rms * g (+ b)`: the rms of z itself, or of h (the paper's rule), whose mean is taken
    off first in LayerNorm families."""

    def __init__(self, config: InsertionConfig, shape: BaseShape) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.hidden))
        self.bias = nn.Parameter(torch.empty(config.hidden)) if shape.family.norm_bias else None
        self.eps, self.own = shape.norm_eps, config.norm == "own"
        self.centred = shape.family.norm == "layer" and not self.own

    def forward(self, z: Tensor, h: Tensor) -> Tensor:
        wide = torch.promote_types(z.dtype, torch.float32)
        u, measured = z.to(wide), (z if self.own else h).to(wide)
        if self.centred:
            mean = measured.mean(-1, keepdim=True)
            u, measured = u - mean, measured - mean
        out = (u * inverse_rms(measured, self.eps)).to(z.dtype) * self.weight
        return out if self.bias is None else out + self.bias


class PostNorm(nn.Module):
    """The norm after a branch: by the rms of what the base's branch gives, as the base divides."""

    def __init__(self, config: InsertionConfig, shape: BaseShape) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.hidden))
        self.eps = shape.norm_eps

    def forward(self, addition: Tensor, branch: Tensor) -> Tensor:
        wide = torch.promote_types(addition.dtype, torch.float32)
        scale = inverse_rms(branch.to(wide), self.eps)
        return (addition.to(wide) * scale).to(addition.dtype) * self.weight


class HeadNorm(nn.Module):
    """RMS norm of queries or keys, [..., heads * head_dim]: each head by itself (Qwen3) or all
    jointly (OLMo 2), as wide as its weight. Inserted heads stay out of the base's reduction."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.empty(width)), eps

    def forward(self, flat: Tensor) -> Tensor:
        heads = flat.unflatten(-1, (-1, len(self.weight)))
        wide = heads.to(torch.promote_types(heads.dtype, torch.float32))
        return ((wide * inverse_rms(wide, self.eps)).to(heads.dtype) * self.weight).flatten(-2)


def inverse_rms(measured: Tensor, eps: float) -> Tensor:
    return measured.pow(2).mean(-1, keepdim=True).add(eps).rsqrt()


def head_norm(norm: str, heads: int, shape: BaseShape) -> nn.Module:
    if not norm:
        return nn.Identity()
    joint = heads if shape.family.attention.joint_norm else 1
    return HeadNorm(joint * shape.head_dim, shape.norm_eps)
