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
        self.own = config.norm == "own"
        self.rms = RMS(shape.norm_eps, config.hidden if self.own else shape.hidden)
        self.centred = shape.family.norm == "layer" and not self.own

    def forward(self, z: Tensor, h: Tensor | None) -> Tensor:
        u, measured = z, z if self.own or h is None else h
        if self.centred:
            measured = measured.to(_wide(measured))
            mean = measured.mean(-1, keepdim=True)
            u, measured = u - mean, measured - mean
        u = u / self.rms(measured)
        out = (u if u.dtype == z.dtype else u.to(z.dtype)) * self.weight
        return out if self.bias is None else out + self.bias


class PostNorm(nn.Module):
    """The norm after a branch: by the rms of what the base's branch gives, as the base divides."""

    def __init__(self, config: InsertionConfig, shape: BaseShape) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.hidden))
        self.rms = RMS(shape.norm_eps, shape.hidden)

    def forward(self, addition: Tensor, branch: Tensor) -> Tensor:
        return (addition / self.rms(branch)).to(addition.dtype) * self.weight


class HeadNorm(nn.Module):
    """RMS norm of queries or keys, [..., heads * head_dim]: each head by itself (Qwen3) or all
    jointly (OLMo 2), as wide as its weight. Inserted heads stay out of the base's reduction."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.rms = nn.Parameter(torch.empty(width)), RMS(eps, width)

    def forward(self, flat: Tensor) -> Tensor:
        heads = flat.unflatten(-1, (-1, len(self.weight)))
        return ((heads / self.rms(heads)).to(heads.dtype) * self.weight).flatten(-2)


class RMS:
    """sqrt(mean x^2 + eps) over `width`, [..., 1], in float32 at least: the hypotenuse of
    |x| / sqrt(n) and sqrt(eps), which takes three operations and squares no large number."""

    def __init__(self, eps: float, width: int) -> None:
        # Tensors without dimensions, good on any device, where numbers would be wrapped each time.
        numbers = torch.tensor([width, 1 / eps], dtype=torch.float64, device="cpu").rsqrt()
        self.scale_and_root = {kind: numbers.to(kind).unbind() for kind in WIDE}

    def __call__(self, measured: Tensor) -> Tensor:
        wide = _wide(measured)
        scale, root = self.scale_and_root[wide]
        length = torch.linalg.vector_norm(measured, dim=-1, keepdim=True, dtype=wide)
        return torch.hypot(length * scale, root)


WIDE = (torch.float32, torch.float64)


def _wide(tensor: Tensor) -> torch.dtype:
    return tensor.dtype if tensor.dtype == torch.float64 else torch.float32


def head_norm(norm: str, heads: int, shape: BaseShape) -> HeadNorm | None:
    if not norm:
        return None
    joint = heads if shape.family.attention.joint_norm else 1
    return HeadNorm(joint * shape.head_dim, shape.norm_eps)
