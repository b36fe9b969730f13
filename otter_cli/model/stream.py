"""The inserted stream: docs/method.md, "The stream", "Attention heads" and "FFN units".

Products, norms, attention, FFN, layer and insertion, in this order, as the formulas have them. Row
vectors: x is the normed state of the base, a the output of its heads, m its FFN activation; z is
the state of the stream and u = N(z) its normed state. The base never reads z.

This file is the reference; accel/ is tested against it. State-dict names are those on disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, Self, cast

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
    RegroupedAttention,
    SelectedPositions,
    flatten_tokens,
)
from otter_cli.model.grouped_attention import attention_to_run
from otter_cli.model.rotary import Rotate
from otter_cli.model.signal_reader import SignalReader

# Stores keys and values in the insertion's own cache layer. Returns all of them.
UpdateCache = Callable[[Cache, Tensor, Tensor], tuple[Tensor, Tensor]]


class DualInputLinear(nn.Module):
    """`x W^h + u W^z (+ b)`, [n, out]. Without inserted units, W^z and u are absent."""

    def __init__(self, base_dim: int, inserted_dim: int, out: int, bias: bool) -> None:
        super().__init__()
        self.h = nn.Linear(base_dim, out, bias=False)
        self.z = nn.Linear(inserted_dim, out, bias=False) if inserted_dim else None
        self.bias = nn.Parameter(torch.empty(out)) if bias else None

    def forward(self, x: Tensor, u: Tensor | None) -> Tensor:
        out: Tensor = self.h(flatten_tokens(x, self.h.weight.dtype))
        if self.z is not None and u is not None:
            out = out + self.z(u)
        return out if self.bias is None else out + self.bias


class Product(Protocol):
    """Some DualInputLinear of a layer, side by side."""

    def __call__(self, x: Tensor, u: Tensor | None) -> Tensor:
        """`x W^h + u W^z (+ b)`, [n, outputs], of x [.., d] and u [n, D]."""

    def add_to(self, z: Tensor, x: Tensor, u: Tensor | None) -> Tensor:
        """`z + x W^h + u W^z (+ b)`."""


class PlainProduct:
    """The reference of `Product`: each linear by itself."""

    def __init__(self, *linears: DualInputLinear) -> None:
        self.linears = linears

    def __call__(self, x: Tensor, u: Tensor | None) -> Tensor:
        return torch.cat([linear(x, u) for linear in self.linears], -1)

    def add_to(self, z: Tensor, x: Tensor, u: Tensor | None) -> Tensor:
        return z + self(x, u)


class LayerProducts(NamedTuple):
    """The four products of a layer; None where it has no inserted heads, or no inserted units."""

    heads: Product | None  # queries, then own keys and values
    out: Product
    units: Product | None  # gate, then up
    down: Product

    @classmethod
    def of(cls, layer: InsertedLayer, kind: Callable[..., Product] = PlainProduct) -> LayerProducts:
        """The products of a layer, each made by `kind` of its linears."""
        attention, ffn = layer.attention, layer.ffn
        heads = kind(*attention.inputs) if attention.inputs else None
        units = kind(*ffn.inputs) if ffn.inputs else None
        return cls(heads, kind(attention.out), units, kind(ffn.down))


STATISTIC_DTYPES = (torch.float32, torch.float64)


def _statistic_dtype(tensor: Tensor) -> torch.dtype:
    return tensor.dtype if tensor.dtype == torch.float64 else torch.float32


class RMS:
    """`sqrt(mean(x^2) + eps)` over `width` numbers, [..., 1], in float32 at least: the hypotenuse
    of |x| / sqrt(n) and sqrt(eps), which takes three operations and squares no large number."""

    def __init__(self, eps: float, width: int) -> None:
        # Tensors without dimensions work on any device. Python numbers would be wrapped each time.
        numbers = torch.tensor([width, 1 / eps], dtype=torch.float64, device="cpu").rsqrt()
        self.scale_and_root = {dtype: numbers.to(dtype).unbind() for dtype in STATISTIC_DTYPES}

    def __call__(self, x: Tensor) -> Tensor:
        dtype = _statistic_dtype(x)
        scale, root = self.scale_and_root[dtype]
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)
        return torch.hypot(length * scale, root)


class StreamNorm(nn.Module):
    """`u = z / rms * g (+ b)`. `norm: own` takes the rms of z, `norm: base` that of h (the paper's
    rule), and in LayerNorm families subtracts the mean of h first."""

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
    """The norm after a branch: `addition / rms(o) * g`, o the base's own branch output."""

    def __init__(self, config: InsertionConfig, shape: BaseShape) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.hidden))
        self.rms = RMS(shape.norm_eps, shape.hidden)

    def forward(self, addition: Tensor, branch_out: Tensor) -> Tensor:
        return (addition / self.rms(branch_out)).to(addition.dtype) * self.weight


class HeadNorm(nn.Module):
    """RMS norm of queries or keys [..., heads * head_dim], over as many numbers as its weight has:
    each head by itself (Qwen3), or all inserted heads jointly (OLMo 2)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.rms = nn.Parameter(torch.empty(width)), RMS(eps, width)

    def forward(self, flat: Tensor) -> Tensor:
        heads = flat.unflatten(-1, (-1, len(self.weight)))
        return ((heads / self.rms(heads)).to(heads.dtype) * self.weight).flatten(-2)


def head_norm(norm: str, heads: int, shape: BaseShape) -> HeadNorm | None:
    if not norm:
        return None
    joint = heads if shape.family.attention.joint_norm else 1
    return HeadNorm(joint * shape.head_dim, shape.norm_eps)


class InsertedBranch(nn.Module):
    """`z <- z + P(t W^h + t' W^z)`: t is the base's output (a or m), t' the inserted one, P the
    norm after the branch in families that have one. z, u and t' are [batch * tokens, ...]."""

    conversions = 0  # by `to`, `half` and the like, of any branch; packed weights are stale then

    def __init__(
        self, config: InsertionConfig, shape: BaseShape, block: Attention | FeedForward, inner: int
    ) -> None:
        super().__init__()
        self.inserted_dim = inner  # of t'
        if inner:
            self.norm = StreamNorm(config, shape)
        self.post_norm = PostNorm(config, shape) if block.post_norm else None

    def _apply(self, *arguments: Any, **kwargs: Any) -> Self:
        InsertedBranch.conversions += 1
        return super()._apply(*arguments, **kwargs)

    def normed(self, z: Tensor, captured: BranchActivations) -> Tensor:
        """u = N(z)."""
        h = captured.residual
        return self.norm(z, None if h is None else flatten_tokens(h))

    def add_to_stream(
        self, z: Tensor, product: Product, captured: BranchActivations, inserted_out: Tensor | None
    ) -> Tensor:
        assert captured.base_out is not None
        if self.post_norm is None:
            return product.add_to(z, captured.base_out, inserted_out)
        assert captured.branch_out is not None
        addition = product(captured.base_out, inserted_out)
        return z + self.post_norm(addition, flatten_tokens(captured.branch_out))


def tap_width(
    block: Attention | FeedForward, inner: int, hidden: int, bias: bool
) -> tuple[int, bool]:
    """The width of what the stream reads of a branch, and whether it still lacks the bias."""
    return (inner, bias) if block.read_at == "input" else (hidden, False)


class InsertedAttention(InsertedBranch):
    """`q = x W_q^h + u W_q^z`, k and v alike or the base's own (`kv: base`), then
    `z <- z + a W_o^h + a' W_o^z` with a' the output of the inserted heads."""

    def __init__(self, config: InsertionConfig, shape: BaseShape) -> None:
        block, c = shape.family.attention, shape.head_dim
        super().__init__(config, shape, block, config.heads * c)
        d, D, own = shape.hidden, config.hidden, config.kv == "own"
        self.config, self.head_dim = config, c
        width, bias = tap_width(block, shape.heads * c, d, shape.out_bias)
        self.out = DualInputLinear(width, config.heads * c, D, bias)
        self.inputs: list[DualInputLinear] = []
        if not config.heads:
            return
        self.query = DualInputLinear(d, D, config.heads * c, shape.attention_bias)
        self.query_norm = head_norm(block.query_norm, config.heads, shape)
        self.sinks = nn.Parameter(torch.empty(config.heads)) if block.sinks else None
        if own:
            self.key = DualInputLinear(d, D, config.kv_heads * c, shape.attention_bias)
            self.value = DualInputLinear(d, D, config.kv_heads * c, shape.attention_bias)
        self.key_norm = head_norm(block.key_norm, config.kv_heads, shape) if own else None
        self.inputs = [self.query, *([self.key, self.value] if own else [])]
        self._head_counts = [config.heads, *([config.kv_heads] * 2 if own else [])]
        # Queries and keys are rotated together; values are not.
        self._rotated = [config.heads + config.kv_heads, config.kv_heads]

    def forward(
        self,
        z: Tensor,
        captured: AttentionActivations,
        rotate: Rotate,
        update_cache: UpdateCache,
        products: LayerProducts,
        selected: SelectedPositions | None,
    ) -> Tensor:
        """z after the branch. Its heads see all positions; with `selected`, z has these alone."""
        inserted_out, after = None, captured if selected is None else captured.select(selected)
        if products.heads is not None:
            inserted_out = self.heads(z, captured, rotate, update_cache, products.heads)
        if selected is not None:
            z = selected.select(z)
            inserted_out = None if inserted_out is None else selected.select(inserted_out)
        return self.add_to_stream(z, products.out, after, inserted_out)

    def heads(
        self,
        z: Tensor,
        captured: AttentionActivations,
        rotate: Rotate,
        update_cache: UpdateCache,
        product: Product,
    ) -> Tensor:
        """a', [n, A * c]. Raises OtterError where the base has no registered attention function."""
        if captured.call is None:
            raise OtterError(
                "the base's attention runs through no registered attention function",
                hint='load it with attn_implementation="sdpa"',
            )
        inputs = product(captured.normed, self.normed(z, captured))
        query, key, value = self._split(inputs, captured, rotate)
        if key is None or value is None:  # kv: base
            start = self.config.kv_start
            read = slice(start, start + self.config.kv_heads)
            key, value = captured.call.key[:, read], captured.call.value[:, read]
            key, value = key.to(query.dtype), value.to(query.dtype)
        elif (cache := captured.cache) is not None:
            key, value = update_cache(cache, key, value)
        attended = self._attend(captured.call, query, key, value).flatten(-2)
        return flatten_tokens(attended, query.dtype)

    def _split(
        self, inputs: Tensor, captured: AttentionActivations, rotate: Rotate
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """q, k and v, [batch, heads, tokens, c], normed and rotated."""
        if self.query_norm is not None:
            flat = inputs.split([heads * self.head_dim for heads in self._head_counts], -1)
            parts = [self.query_norm(flat[0])]
            if self.key_norm is not None:
                parts += [self.key_norm(flat[1]), flat[2]]
            inputs = torch.cat(parts, -1)
        heads = inputs.view(*captured.normed.shape[:2], -1, self.head_dim)
        if self.config.kv == "base":
            return rotate(heads).transpose(1, 2), None, None
        rotated, value = heads.split_with_sizes(self._rotated, 2)
        query, key = rotate(rotated).transpose(1, 2).split_with_sizes(self._head_counts[:2], 1)
        return query, key, value.transpose(1, 2)

    def _attend(self, call: AttentionCall, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The base's own call with other heads: [batch, tokens, A, c]."""
        if query.requires_grad and query.device.type == "cpu" and query.dtype.itemsize == 2:
            # torch's backward of attention takes twice as long in half the precision there.
            query, key, value = query.float(), key.float(), value.float()
        mask = call.mask_for(query.dtype)
        groups = self.config.heads // self.config.kv_heads
        if hasattr(call.module, "num_key_value_groups"):
            module = cast(nn.Module, RegroupedAttention(call.module, groups, self.sinks))
        else:  # its attention function expects a key for every query
            module = call.module
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        sinks = {} if self.sinks is None else {"s_aux": self.sinks}
        # Dropout would draw from the base's random generator.
        arguments = {**call.arguments, "dropout": 0.0, **sinks}
        return attention_to_run(call.function)(module, query, key, value, mask, **arguments)[0]


class InsertedFeedForward(InsertedBranch):
    """`m' = act(x W_g^h + u W_g^z) * (x W_u^h + u W_u^z)`, `z <- z + m W_d^h + m' W_d^z`. Families
    without a gate have `m' = act(x W_u^h + u W_u^z)`."""

    def __init__(self, config: InsertionConfig, shape: BaseShape) -> None:
        block, f = shape.family.ffn, config.ffn
        super().__init__(config, shape, block, f)
        d, D = shape.hidden, config.hidden
        width, bias = tap_width(block, shape.ffn, d, shape.ffn_bias)
        self.down = DualInputLinear(width, f, D, bias)
        self.inputs: list[DualInputLinear] = []
        if f:
            self.gate = None if block.ungated else DualInputLinear(d, D, f, shape.ffn_bias)
            self.up = DualInputLinear(d, D, f, shape.ffn_bias)
            self.inputs = [*([self.gate] if self.gate else []), self.up]
            self.activation = ACT2FN[shape.activation]

    def forward(
        self, z: Tensor, entry: Tensor, captured: BranchActivations, products: LayerProducts
    ) -> Tensor:
        """z after the branch. `entry`: the z that the branch reads."""
        units = None
        if products.units is not None:
            inputs = products.units(captured.normed, self.normed(entry, captured))
            gate, up = (inputs, None) if self.gate is None else inputs.chunk(2, -1)
            units = self.activation(gate) if up is None else self.activation(gate) * up
        return self.add_to_stream(z, products.down, captured, units)


class InsertedLayer(nn.Module):
    """The inserted part of one decoder layer."""

    def __init__(self, config: InsertionConfig, shape: BaseShape) -> None:
        super().__init__()
        self.attention = InsertedAttention(config, shape)
        self.ffn = InsertedFeedForward(config, shape)
        self.parallel = shape.parallel

    def forward(
        self,
        z: Tensor,
        attention: AttentionActivations,
        ffn: BranchActivations,
        rotate: Rotate,
        update_cache: UpdateCache,
        products: LayerProducts,
        selected: SelectedPositions | None = None,
    ) -> Tensor:
        """z after the layer: [batch, tokens, D], or [N, D] with N `selected` positions."""
        entry = flatten_tokens(z)
        middle = self.attention(entry, attention, rotate, update_cache, products, selected)
        if selected is not None:
            entry, ffn = selected.select(entry), ffn.select(selected)
        after: Tensor = self.ffn(middle, entry if self.parallel else middle, ffn, products)
        return after.view(z.shape) if selected is None else after


class Insertion(nn.Module):
    """One insertion: embedding, layers, final norm and signal heads. At D = 0, heads alone."""

    def __init__(self, config: InsertionConfig, shape: BaseShape) -> None:
        super().__init__()
        self.config = config
        table = config.hidden > 0 and config.embedding == "table"
        self.embedding = nn.Embedding(shape.vocab, config.hidden) if table else None
        learned = table and shape.position_rows
        self.positions = nn.Embedding(shape.position_rows, config.hidden) if learned else None
        if config.hidden:
            self.layers = nn.ModuleDict(
                {str(index): InsertedLayer(config, shape) for index in config.layers}
            )
            self.norm = StreamNorm(config, shape)
        self.signals = SignalReader(config, shape)

    def start(self, tokens: Tensor) -> Tensor:
        """`z = E_z[t]`, or zeros, [batch, tokens, D]."""
        if self.embedding is not None:
            first: Tensor = self.embedding(tokens)
            return first
        g = self.norm.weight
        return torch.zeros(*tokens.shape, self.config.hidden, dtype=g.dtype, device=g.device)
