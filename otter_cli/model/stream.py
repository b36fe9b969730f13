"""The inserted stream of one decoder layer, as in "The method" of docs/method.md.

Norms, attention, feed-forward and the layer itself, in this order. Row vectors: x is the base's
normed state, a its heads' output, m its FFN activation; z is the stream and u = N(z) its normed
state. The base never reads z."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache

from otter_cli.core.errors import OtterError
from otter_cli.families.family import Attention, FeedForward
from otter_cli.families.shape import BaseShape
from otter_cli.graft.config import InsertionConfig
from otter_cli.model.activations import (
    AttentionActivations,
    AttentionCall,
    BranchActivations,
    SelectedPositions,
)
from otter_cli.model.fused_linear import (
    BaseProjections,
    DualInputLinear,
    FusedLinear,
    flatten_tokens,
)
from otter_cli.model.rotary import Rotate


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
            measured = measured.to(_statistic_dtype(measured))
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
        self.scale_and_root = {kind: numbers.to(kind).unbind() for kind in STATISTIC_DTYPES}

    def __call__(self, measured: Tensor) -> Tensor:
        wide = _statistic_dtype(measured)
        scale, root = self.scale_and_root[wide]
        length = torch.linalg.vector_norm(measured, dim=-1, keepdim=True, dtype=wide)
        return torch.hypot(length * scale, root)


STATISTIC_DTYPES = (torch.float32, torch.float64)


def _statistic_dtype(tensor: Tensor) -> torch.dtype:
    return tensor.dtype if tensor.dtype == torch.float64 else torch.float32


def head_norm(norm: str, heads: int, shape: BaseShape) -> HeadNorm | None:
    if not norm:
        return None
    joint = heads if shape.family.attention.joint_norm else 1
    return HeadNorm(joint * shape.head_dim, shape.norm_eps)


class InsertedBranch(nn.Module):
    """`z += P(t W^h + t' W^z)`: t the base's part, t' the inserted one, P the norm after the branch
    in families that have one. z and all that reads it are rows, [batch * tokens, ...] or those of
    the chosen positions."""

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
        self.joints: list[FusedLinear] = []

    def joint(self, *parts: Any) -> FusedLinear:
        made = FusedLinear(*parts)
        self.joints.append(made)
        return made

    def land(
        self,
        product: FusedLinear,
        z: Tensor,
        tap: BranchActivations,
        mine: Tensor | None,
        made: Tensor | None,
    ) -> Tensor:
        assert tap.part is not None
        if self.post_norm is None:
            return product.add(z, tap.part, mine, made)
        assert tap.branch is not None
        return z + self.post_norm(product(tap.part, mine, made), flatten_tokens(tap.branch))

    def normed(self, z: Tensor, tap: BranchActivations) -> Tensor:
        """u."""
        return self.norm(z, None if tap.residual is None else flatten_tokens(tap.residual))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        for joint in self.joints:
            joint.forget()
        return self


def tap_width(
    block: Attention | FeedForward, inner: int, hidden: int, bias: bool
) -> tuple[int, bool]:
    """Width of what the stream reads of a branch, and whether a bias is still to be added to it."""
    return (inner, bias) if block.read_at == "input" else (hidden, False)


# Stores keys and values in the insertion's own cache layer and gives back all of them.
UpdateCache = Callable[[Cache, Tensor, Tensor], tuple[Tensor, Tensor]]


class InsertedAttention(InsertedBranch):
    """t is the base heads' output a; t' that of heads with their own keys and values, or the
    base's."""

    def __init__(self, config: InsertionConfig, shape: BaseShape) -> None:
        block, c = shape.family.attention, shape.head_dim
        super().__init__(config, shape, block, config.heads)
        d, D, own = shape.hidden, config.hidden, config.kv == "own"
        self.config, self.head_dim = config, c
        wide, bias = tap_width(block, shape.heads * c, d, shape.out_bias)
        self.out = DualInputLinear(wide, config.heads * c, D, bias)
        self._out = self.joint(self.out)
        self._inputs: FusedLinear | None = None
        if not config.heads:
            return
        self.query = DualInputLinear(d, D, config.heads * c, shape.attention_bias)
        self.query_norm = head_norm(block.query_norm, config.heads, shape)
        self.sinks = nn.Parameter(torch.empty(config.heads)) if block.sinks else None
        if own:
            self.key = DualInputLinear(d, D, config.kv_heads * c, shape.attention_bias)
            self.value = DualInputLinear(d, D, config.kv_heads * c, shape.attention_bias)
        self.key_norm = head_norm(block.key_norm, config.kv_heads, shape) if own else None
        self._inputs = self.joint(self.query, *((self.key, self.value) if own else ()))
        self._parts = [config.heads, *([config.kv_heads] * 2 if own else [])]
        self._turned = [config.heads + config.kv_heads, config.kv_heads]  # queries, keys; values

    def forward(
        self,
        z: Tensor,
        tap: AttentionActivations,
        rotate: Rotate,
        remember: UpdateCache,
        made: BaseProjections,
        chosen: SelectedPositions | None,
    ) -> Tensor:
        """z after the branch, whose heads see all positions."""
        mine = self.heads(z, tap, rotate, remember, made.heads) if self.thin else None
        if chosen is None:
            return self.land(self._out, z, tap, mine, made.out)
        mine = None if mine is None else chosen.of(mine)
        return self.land(self._out, chosen.of(z), tap.at(chosen), mine, made.out)

    def heads(
        self,
        z: Tensor,
        tap: AttentionActivations,
        rotate: Rotate,
        remember: UpdateCache,
        made: Tensor | None,
    ) -> Tensor:
        """a', [n, A * c]."""
        if tap.call is None:
            raise OtterError(
                "the base's attention runs through no registered attention function",
                hint='load it with attn_implementation="sdpa"',
            )
        assert self._inputs is not None
        inputs = self._inputs(tap.normed, self.normed(z, tap), made)
        query, key, value = self._split(inputs, tap, rotate)
        if key is None or value is None:  # kv: base
            read = slice(self.config.kv_start, self.config.kv_start + self.config.kv_heads)
            key, value = tap.call.key[:, read], tap.call.value[:, read]
            key, value = key.to(query.dtype), value.to(query.dtype)
        elif (cache := tap.cache) is not None:
            key, value = remember(cache, key, value)
        return flatten_tokens(self._attend(tap.call, query, key, value).flatten(-2))

    def _split(
        self, inputs: Tensor, tap: AttentionActivations, rotate: Rotate
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """q, k and v, [batch, heads, tokens, c]; keys turn with the queries."""
        if self.query_norm is not None:
            flat = inputs.split([heads * self.head_dim for heads in self._parts], -1)
            parts = [self.query_norm(flat[0])]
            if self.key_norm is not None:
                parts += [self.key_norm(flat[1]), flat[2]]
            inputs = torch.cat(parts, -1)
        heads = inputs.view(*tap.normed.shape[:2], -1, self.head_dim)
        if self.config.kv == "base":
            return rotate(heads).transpose(1, 2), None, None
        turning, value = heads.split_with_sizes(self._turned, 2)
        query, key = rotate(turning).transpose(1, 2).split_with_sizes(self._parts[:2], 1)
        return query, key, value.transpose(1, 2)

    def _attend(self, call: AttentionCall, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The base's own call with other heads: [batch, tokens, A, c]."""
        mask = call.mask
        if mask is not None and mask.is_floating_point():
            mask = mask.to(query.dtype)
        groups = self.config.heads // self.config.kv_heads
        if hasattr(call.module, "num_key_value_groups"):
            module = cast(nn.Module, RegroupedAttention(call.module, groups, self.sinks))
        else:  # its attention function expects a key for every query
            module = call.module
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        sinks = {} if self.sinks is None else {"s_aux": self.sinks}
        # No dropout, even where the base trains: its next random numbers would be others.
        arguments = {**call.arguments, "dropout": 0.0, **sinks}
        attended: Tensor = call.function(module, query, key, value, mask, **arguments)[0]
        return attended


class RegroupedAttention:
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
        wide, bias = tap_width(block, shape.ffn, d, shape.ffn_bias)
        self.down = DualInputLinear(wide, f, D, bias)
        self._down = self.joint(self.down)
        self._inputs: FusedLinear | None = None
        if f:
            self.gate = None if block.ungated else DualInputLinear(d, D, f, shape.ffn_bias)
            self.up = DualInputLinear(d, D, f, shape.ffn_bias)
            self._inputs = self.joint(*([self.gate] if self.gate else []), self.up)
            self.activation = ACT2FN[shape.activation]

    def forward(
        self, z: Tensor, entry: Tensor, tap: BranchActivations, made: BaseProjections
    ) -> Tensor:
        """z after the branch; `entry` is z where the branch begins."""
        mine = self.units(entry, tap, made.units) if self.thin else None
        return self.land(self._down, z, tap, mine, made.down)

    def units(self, z: Tensor, tap: BranchActivations, made: Tensor | None) -> Tensor:
        """m', [n, f]."""
        assert self._inputs is not None
        inputs = self._inputs(tap.normed, self.normed(z, tap), made)
        if self.gate is None:
            return self.activation(inputs)
        gate, up = inputs.chunk(2, -1)
        return self.activation(gate) * up


class InsertedLayer(nn.Module):
    """What one decoder layer of the base gets."""

    def __init__(self, config: InsertionConfig, shape: BaseShape) -> None:
        super().__init__()
        self.attention = InsertedAttention(config, shape)
        self.ffn = InsertedFeedForward(config, shape)
        self.parallel = shape.parallel

    @property
    def joints(self) -> tuple[FusedLinear | None, ...]:
        """As `BaseProjections` has them."""
        a, m = self.attention, self.ffn
        return a._inputs, a._out, m._inputs, m._down

    def forward(
        self,
        z: Tensor,
        attention: AttentionActivations,
        ffn: BranchActivations,
        rotate: Rotate,
        remember: UpdateCache,
        made: BaseProjections,
        chosen: SelectedPositions | None = None,
    ) -> Tensor:
        """z after the layer, [batch, tokens, D], or [N, D] at the positions that are read after the
        last. `made`: what all layers made at once."""
        entry = flatten_tokens(z)
        middle = self.attention(entry, attention, rotate, remember, made, chosen)
        if chosen is not None:
            entry, ffn = chosen.of(entry), ffn.at(chosen)
        after: Tensor = self.ffn(middle, entry if self.parallel else middle, ffn, made)
        return after.view(z.shape) if chosen is None else after
