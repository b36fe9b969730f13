"""The inserted stream over vLLM's layers: METHOD, 1, with the projections of a branch in one
product each.

The base's modules are vLLM's own and are called as its model calls them; this file reads what goes
into them. Shapes: [tokens, ...], all sequences of a batch one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN
from vllm.distributed import tensor_model_parallel_all_reduce
from vllm.model_executor.layers.attention import Attention

from otter_cli.families import BaseShape
from otter_cli.insertion import InsertionConfig
from otter_cli.serving.vllm.layout import Layout, pick
from otter_cli.signals import HEADS

Stored = Mapping[str, Tensor]


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape), requires_grad=False)


def inverse_rms(measured: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean x^2 + eps), in the form that the engine's compiler fuses."""
    return measured.pow(2).mean(-1, keepdim=True).add(eps).rsqrt()


class Norm(nn.Module):
    """`u = z / rms * g`, by the rms of z, or of h (the paper's rule)."""

    def __init__(self, config: InsertionConfig, shape: BaseShape) -> None:
        super().__init__()
        self.weight, self.eps = parameter(config.hidden), shape.norm_eps
        self.own = config.norm == "own"

    def forward(self, z: Tensor, h: Tensor) -> Tensor:
        scale = inverse_rms((z if self.own else h).float(), self.eps)
        return (z.float() * scale).to(z.dtype) * self.weight


class Joined(nn.Module):
    """`x W^h + u W^z (+ b)` for several projections at once: their rows one after the other."""

    def __init__(self, base: int, inserted: int, rows: int, bias: bool) -> None:
        super().__init__()
        self.h, self.z = parameter(rows, base), parameter(rows, inserted)
        self.bias = parameter(rows) if bias else None

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        return F.linear(x, self.h, self.bias) + F.linear(u, self.z)

    def load(self, stored: Stored, names: list[str], places: list[list[int]]) -> None:
        parts = list(zip(names, places, strict=True))
        for own, kind in ((self.h, "h.weight"), (self.z, "z.weight"), (self.bias, "bias")):
            if own is not None:
                own.copy_(torch.cat([pick(stored[f"{name}.{kind}"], at) for name, at in parts]))


class Branch(nn.Module):
    """`z += t W^h + t' W^z (+ b)`, summed over the ranks."""

    def __init__(self, layout: Layout, wide: int, thin: int, bias: bool) -> None:
        super().__init__()
        D = layout.config.hidden
        self.ranks, self.columns = layout.ranks, layout.base_columns(wide)
        self.h = parameter(D, len(self.columns))
        self.z = parameter(D, thin) if thin else None
        self.bias = parameter(D) if bias else None

    def forward(self, z: Tensor, wide: Tensor, thin: Tensor | None) -> Tensor:
        added = F.linear(wide, self.h)
        if self.z is not None and thin is not None:
            added = added + F.linear(thin, self.z)
        if self.ranks > 1:
            added = tensor_model_parallel_all_reduce(added)
        return z + added if self.bias is None else z + added + self.bias

    def load(self, stored: Stored, name: str, places: list[int]) -> None:
        self.h.copy_(pick(stored[f"{name}.h.weight"], self.columns, 1))
        if self.z is not None:
            self.z.copy_(pick(stored[f"{name}.z.weight"], places, 1))
        if self.bias is not None:
            self.bias.copy_(stored[f"{name}.bias"])


class InsertedAttention(nn.Module):
    """Inserted heads: an attention layer of the engine that reads the base layer's key/value cache
    (`kv: base`), or has one of its own."""

    def __init__(self, layout: Layout, base: Any, prefix: str, **engine: Any) -> None:
        super().__init__()
        config, shape = layout.config, layout.shape
        self.layout, c = layout, shape.head_dim
        self.out = Branch(layout, shape.heads * c, len(layout.heads) * c, shape.out_bias)
        if not config.heads:
            return
        self.norm = Norm(config, shape)
        self.rows = [len(layout.heads) * c, *[len(layout.kv_heads) * c] * 2]
        if config.kv == "base":
            self.rows = self.rows[:1]
        self.project = Joined(shape.hidden, config.hidden, sum(self.rows), shape.attention_bias)
        normed = bool(shape.family.attention.query_norm)
        self.query_norm = parameter(c) if normed else None
        self.key_norm = parameter(c) if normed and config.kv == "own" else None
        shared = config.kv == "base"
        self.attend = Attention(
            len(layout.heads),
            c,
            base.scaling,
            num_kv_heads=base.num_kv_heads if shared else len(layout.kv_heads),
            per_layer_sliding_window=base.attn.sliding_window,
            prefix=prefix,
            kv_sharing_target_layer_name=base.attn.layer_name if shared else None,
            **engine,
        )

    def forward(
        self, z: Tensor, x: Tensor, h: Tensor, a: Tensor, positions: Tensor, rotary: Any
    ) -> Tensor:
        if not self.layout.config.heads:
            return self.out(z, a, None)
        parts = self.project(x, self.norm(z, h)).split(self.rows, -1)
        query = self._normed(parts[0], self.query_norm)
        if len(parts) == 1:
            query, _ = rotary(positions, query.contiguous())
            return self.out(z, a, self.attend(query, None, None))
        key = self._normed(parts[1], self.key_norm)
        query, key = rotary(positions, query.contiguous(), key.contiguous())
        return self.out(z, a, self.attend(query, key, parts[2].contiguous()))

    def _normed(self, flat: Tensor, weight: Tensor | None) -> Tensor:
        if weight is None:
            return flat
        heads = flat.unflatten(-1, (-1, len(weight)))
        scale = inverse_rms(heads.float(), self.layout.shape.norm_eps)
        return ((heads.float() * scale).to(flat.dtype) * weight).flatten(-2)

    def load(self, stored: Stored) -> None:
        layout = self.layout
        rows = layout.of_heads(layout.heads)
        self.out.load(stored, "out", rows)
        if not layout.config.heads:
            return
        self.norm.weight.copy_(stored["norm.weight"])
        names, places = ["query"], [rows]
        if layout.config.kv == "own":
            own = layout.of_heads(layout.kv_heads)
            names, places = [*names, "key", "value"], [rows, own, own]
        self.project.load(stored, names, places)
        for name in ("query_norm", "key_norm"):
            if (weight := getattr(self, name)) is not None:
                weight.copy_(stored[f"{name}.weight"])


class InsertedFeedForward(nn.Module):
    """`m' = act(x W_g^h + u W_g^z) * (x W_u^h + u W_u^z)`."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        config, shape = layout.config, layout.shape
        self.layout = layout
        self.down = Branch(layout, shape.ffn, len(layout.units), shape.ffn_bias)
        if config.ffn:
            rows = 2 * len(layout.units)
            self.norm = Norm(config, shape)
            self.gate_up = Joined(shape.hidden, config.hidden, rows, shape.ffn_bias)
            self.activation = ACT2FN[shape.activation]

    def forward(self, z: Tensor, x: Tensor, h: Tensor, m: Tensor) -> Tensor:
        if not self.layout.config.ffn:
            return self.down(z, m, None)
        gate, up = self.gate_up(x, self.norm(z, h)).chunk(2, -1)
        return self.down(z, m, self.activation(gate) * up)

    def load(self, stored: Stored) -> None:
        units = self.layout.units
        self.down.load(stored, "down", units)
        if self.layout.config.ffn:
            self.norm.weight.copy_(stored["norm.weight"])
            self.gate_up.load(stored, ["gate", "up"], [units, units])


class Stream(nn.Module):
    """One insertion beside the base's layers, and its signal heads."""

    def __init__(
        self, layout: Layout, layers: Mapping[int, Any], prefix: str, **engine: Any
    ) -> None:
        super().__init__()
        config, shape = layout.config, layout.shape
        self.config, self.hidden = config, config.hidden
        table = config.hidden and config.embedding == "table"
        self.embedding = parameter(shape.vocab, config.hidden) if table else None
        self.attention = cast(dict[str, InsertedAttention], nn.ModuleDict())
        self.ffn = cast(dict[str, InsertedFeedForward], nn.ModuleDict())
        for index in config.layers:
            place = f"{prefix}.layers.{index}.otter_{config.name}.attn"
            base = layers[index].self_attn
            self.attention[str(index)] = InsertedAttention(layout, base, place, **engine)
            self.ffn[str(index)] = InsertedFeedForward(layout)
        self.norm = Norm(config, shape) if config.hidden else None
        self.signals = cast(dict[str, nn.ParameterDict], nn.ModuleDict())
        for signal in config.signals:
            shapes = HEADS[signal.kind].shapes(signal, shape.hidden, config.hidden, shape.vocab)
            parts = {name: parameter(*form) for name, form in shapes.items()}
            self.signals[signal.name] = nn.ParameterDict(parts)

    def start(self, tokens: Tensor, like: Tensor) -> Tensor:
        if self.embedding is None:
            return like.new_zeros(len(tokens), self.hidden)
        return F.embedding(tokens, self.embedding)

    def load(self, stored: Stored) -> None:
        """Takes every tensor of the insertion, by its name within it."""
        if self.embedding is not None:
            self.embedding.copy_(stored["embedding.weight"])
        for index in self.attention:
            self.attention[index].load(_below(stored, f"layers.{index}.attention."))
            self.ffn[index].load(_below(stored, f"layers.{index}.ffn."))
        if self.norm is not None:
            self.norm.weight.copy_(stored["norm.weight"])
        for name, parts in self.signals.items():
            for part, own in parts.items():
                own.copy_(stored[f"signals.{name}.{part}"])


def _below(stored: Stored, prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in stored.items() if n.startswith(prefix)}
