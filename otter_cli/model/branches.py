"""What one decoder layer's attention and FFN add to the inserted stream: METHOD, 1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from otter_cli.core.errors import OtterError
from otter_cli.families import Attention, BaseShape, FeedForward
from otter_cli.insertion.config import InsertionConfig
from otter_cli.model.norms import PostNorm, StreamNorm, head_norm


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


class InsertedAttention(InsertedBranch):
    """t is the base heads' output a; t' that of heads with their own keys and values, or the
    base's."""

    def __init__(self, config: InsertionConfig, shape: BaseShape) -> None:
        block, c = shape.family.attention, shape.head_dim
        super().__init__(config, shape, block, config.heads)
        d, D = shape.hidden, config.hidden
        self.config, self.head_dim = config, c
        wide, bias = read_of(block, shape.heads * c, d, shape.out_bias)
        self.out = TwoInputs(wide, config.heads * c, D, bias)
        if not config.heads:
            return
        self.query = TwoInputs(d, D, config.heads * c, shape.attention_bias)
        self.query_norm = head_norm(block.query_norm, config.heads, shape)
        self.sinks = nn.Parameter(torch.empty(config.heads)) if block.sinks else None
        if config.kv == "own":
            self.key = TwoInputs(d, D, config.kv_heads * c, shape.attention_bias)
            self.value = TwoInputs(d, D, config.kv_heads * c, shape.attention_bias)
            self.key_norm = head_norm(block.key_norm, config.kv_heads, shape)

    def forward(self, name: str, z: Tensor, tap: BranchTap) -> Tensor:
        return self.land(self.out, name, z, tap)

    def inserted(self, name: str, tap: BranchTap) -> Tensor:
        """[batch, tokens, A * c]."""
        if tap.call is None:
            raise OtterError(
                "the base's attention runs through no registered attention function",
                hint='load it with attn_implementation="sdpa"',
            )
        u = self.norm(tap.entry[name], tap.residual)
        query = tap.rotate(self._split(self.query_norm(self.query(tap.normed, u))))
        key, value = self._keys_and_values(tap, u, query.dtype)
        call, mask = tap.call, tap.call.mask
        if mask is not None and mask.is_floating_point():
            mask = mask.to(query.dtype)
        groups = self.config.heads // self.config.kv_heads
        if hasattr(call.module, "num_key_value_groups"):
            module = cast(nn.Module, Grouped(call.module, groups, self.sinks))
        else:  # its attention function expects a key for every query
            module = call.module
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        sinks = {} if self.sinks is None else {"s_aux": self.sinks}
        heads, _ = call.function(module, query, key, value, mask, **{**call.arguments, **sinks})
        return heads.flatten(-2)

    def _keys_and_values(
        self, tap: BranchTap, u: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        assert tap.call is not None
        if self.config.kv == "base":
            read = slice(self.config.kv_start, self.config.kv_start + self.config.kv_heads)
            return tap.call.key[:, read].to(dtype), tap.call.value[:, read].to(dtype)
        assert tap.remember is not None
        key = tap.rotate(self._split(self.key_norm(self.key(tap.normed, u))))
        return tap.remember(self.config.name, key, self._split(self.value(tap.normed, u)))

    def _split(self, flat: Tensor) -> Tensor:
        return flat.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [batch, heads, tokens, c]


class Grouped:
    """The base's attention module as an attention function sees it, with the insertion's own head
    grouping and sinks."""

    def __init__(self, module: nn.Module, groups: int, sinks: Tensor | None) -> None:
        self._module, self.num_key_value_groups = module, groups
        if sinks is not None:
            self.sinks = sinks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class InsertedFeedForward(InsertedBranch):
    """t is the base's activation m; t' is `act(x W_g^h + u W_g^z) * (x W_u^h + u W_u^z)`."""

    def __init__(self, config: InsertionConfig, shape: BaseShape) -> None:
        block, f = shape.family.ffn, config.ffn
        super().__init__(config, shape, block, f)
        d, D = shape.hidden, config.hidden
        wide, bias = read_of(block, shape.ffn, d, shape.ffn_bias)
        self.down = TwoInputs(wide, f, D, bias)
        if f:
            self.gate = None if block.plain else TwoInputs(d, D, f, shape.ffn_bias)
            self.up = TwoInputs(d, D, f, shape.ffn_bias)
            self.activation: nn.Module = ACT2FN[shape.activation]

    def forward(self, name: str, z: Tensor, tap: BranchTap) -> Tensor:
        return self.land(self.down, name, z, tap)

    def inserted(self, name: str, tap: BranchTap) -> Tensor:
        """[batch, tokens, f]."""
        u = self.norm(tap.entry[name], tap.residual)
        up: Tensor = self.up(tap.normed, u)
        if self.gate is None:
            return cast(Tensor, self.activation(up))
        return cast(Tensor, self.activation(self.gate(tap.normed, u)) * up)


def read_of(
    block: Attention | FeedForward, inner: int, hidden: int, bias: bool
) -> tuple[int, bool]:
    """Width of what the stream reads of a branch, and whether a bias is still to be added to it."""
    return (inner, bias) if block.tap == "input" else (hidden, False)
