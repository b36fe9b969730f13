"""The inserted stream z of one insertion: METHOD, 1, one class a block. It reads the base and is
read by nothing in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from otter_cli.families import BaseShape
from otter_cli.insertion.config import InsertionConfig
from otter_cli.signals import HEADS

Unembed = Callable[[Tensor], Tensor]


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
class LayerTap:
    """The inputs of a layer's base modules, as the hooks hand them over."""

    residual: Tensor | None = None  # h before the norm, [batch, tokens, d]
    normed: Tensor | None = None  # x
    rotate: Callable[[Tensor], Tensor] = field(default=lambda heads: heads)
    call: AttentionCall | None = None
    # Stores keys and values in the insertion's own cache layer and gives back all of them.
    remember: Callable[[str, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None


class StreamNorm(nn.Module):
    """`u = z / rms * g`: the rms of z itself, or of h (the paper's rule)."""

    def __init__(self, config: InsertionConfig, shape: BaseShape) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.hidden))
        self.eps, self.own = shape.norm_eps, config.norm == "own"

    def forward(self, z: Tensor, h: Tensor) -> Tensor:
        measured = z if self.own else h
        wide = torch.promote_types(z.dtype, torch.float32)
        scale = measured.to(wide).pow(2).mean(-1, keepdim=True).add(self.eps).rsqrt()
        return (z.to(wide) * scale).to(z.dtype) * self.weight


class HeadNorm(nn.Module):
    """RMS norm of each query or key head (Qwen3)."""

    def __init__(self, shape: BaseShape) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape.head_dim))
        self.eps = shape.norm_eps

    def forward(self, heads: Tensor) -> Tensor:
        wide = heads.to(torch.promote_types(heads.dtype, torch.float32))
        return (wide * wide.pow(2).mean(-1, keepdim=True).add(self.eps).rsqrt()).to(
            heads.dtype
        ) * self.weight


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


class InsertedAttention(nn.Module):
    """`z += a W_o^h + a' W_o^z`, a' from heads with their own keys and values or the base's."""

    def __init__(self, config: InsertionConfig, shape: BaseShape) -> None:
        super().__init__()
        d, D, c = shape.hidden, config.hidden, shape.head_dim
        self.config, self.head_dim = config, c
        self.out = TwoInputs(shape.heads * c, config.heads * c, D, shape.out_bias)
        if not config.heads:
            return
        self.norm = StreamNorm(config, shape)
        self.query = TwoInputs(d, D, config.heads * c, shape.attention_bias)
        names = shape.family.attention
        self.query_norm = HeadNorm(shape) if names.query_norm else nn.Identity()
        if config.kv == "own":
            self.key = TwoInputs(d, D, config.kv_heads * c, shape.attention_bias)
            self.value = TwoInputs(d, D, config.kv_heads * c, shape.attention_bias)
            self.key_norm = HeadNorm(shape) if names.key_norm else nn.Identity()

    def forward(self, z: Tensor, tap: LayerTap, base_heads: Tensor) -> Tensor:
        return z + self.out(base_heads, self._heads(z, tap) if self.config.heads else None)

    def _heads(self, z: Tensor, tap: LayerTap) -> Tensor:
        assert tap.normed is not None and tap.residual is not None and tap.call is not None
        u = self.norm(z, tap.residual)
        query = tap.rotate(self.query_norm(self._split(self.query(tap.normed, u))))
        key, value = self._keys_and_values(tap, u, query.dtype)
        call, mask = tap.call, tap.call.mask
        if mask is not None and mask.is_floating_point():
            mask = mask.to(query.dtype)
        grouped = Grouped(call.module, self.config.heads // self.config.kv_heads)
        heads, _ = call.function(grouped, query, key, value, mask, **call.arguments)
        return heads.flatten(-2)  # [batch, tokens, A * c]

    def _keys_and_values(
        self, tap: LayerTap, u: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        assert tap.call is not None
        if self.config.kv == "base":
            read = slice(self.config.kv_start, self.config.kv_start + self.config.kv_heads)
            return tap.call.key[:, read].to(dtype), tap.call.value[:, read].to(dtype)
        assert tap.normed is not None and tap.remember is not None
        key = tap.rotate(self.key_norm(self._split(self.key(tap.normed, u))))
        return tap.remember(self.config.name, key, self._split(self.value(tap.normed, u)))

    def _split(self, flat: Tensor) -> Tensor:
        return flat.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [batch, heads, tokens, c]


class Grouped:
    """The base's attention module as an attention function sees it, with the insertion's own head
    grouping."""

    def __init__(self, module: nn.Module, groups: int) -> None:
        self._module, self.num_key_value_groups = module, groups

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class InsertedFeedForward(nn.Module):
    """`z += m W_d^h + m' W_d^z`, `m' = act(x W_g^h + u W_g^z) * (x W_u^h + u W_u^z)`."""

    def __init__(self, config: InsertionConfig, shape: BaseShape) -> None:
        super().__init__()
        d, D, f = shape.hidden, config.hidden, config.ffn
        self.units = f
        self.down = TwoInputs(shape.ffn, f, D, shape.ffn_bias)
        if f:
            self.norm = StreamNorm(config, shape)
            self.gate = TwoInputs(d, D, f, shape.ffn_bias)
            self.up = TwoInputs(d, D, f, shape.ffn_bias)
            self.activation: nn.Module = ACT2FN[shape.activation]

    def forward(self, z: Tensor, tap: LayerTap, base_units: Tensor) -> Tensor:
        return z + self.down(base_units, self._units(z, tap) if self.units else None)

    def _units(self, z: Tensor, tap: LayerTap) -> Tensor:
        assert tap.normed is not None and tap.residual is not None
        u = self.norm(z, tap.residual)
        gate: Tensor = self.activation(self.gate(tap.normed, u))
        return gate * self.up(tap.normed, u)


class InsertedLayer(nn.Module):
    """What one decoder layer of the base gets."""

    def __init__(self, config: InsertionConfig, shape: BaseShape) -> None:
        super().__init__()
        self.attention = InsertedAttention(config, shape)
        self.ffn = InsertedFeedForward(config, shape)


class Insertion(nn.Module):
    """One insertion: embedding, layers, final norm and signal heads. Its state dict has the names
    of the file."""

    def __init__(self, config: InsertionConfig, shape: BaseShape) -> None:
        super().__init__()
        self.config = config
        table = config.hidden > 0 and config.embedding == "table"
        self.embedding = nn.Embedding(shape.vocab, config.hidden) if table else None
        if config.hidden:
            self.layers = nn.ModuleDict(
                {str(i): InsertedLayer(config, shape) for i in config.layers}
            )
            self.norm = StreamNorm(config, shape)
        self.signals = nn.ModuleDict(
            {
                signal.name: nn.ParameterDict(
                    {
                        name: nn.Parameter(torch.empty(form))
                        for name, form in HEADS[signal.kind]
                        .shapes(signal, shape.hidden, config.hidden)
                        .items()
                    }
                )
                for signal in config.signals
            }
        )

    def start(self, tokens: Tensor) -> Tensor:
        """`z = E_z[t]`, or zeros. [batch, tokens, D]."""
        if self.embedding is not None:
            first: Tensor = self.embedding(tokens)
            return first
        weight = self.norm.weight
        return torch.zeros(
            *tokens.shape, self.config.hidden, dtype=weight.dtype, device=weight.device
        )

    def read(
        self, name: str, base_state: Tensor, inserted_state: Tensor | None, unembed: Unembed
    ) -> Tensor:
        """The signal `name` at the positions of the given states."""
        signal = next(signal for signal in self.config.signals if signal.name == name)
        weights = dict(cast(nn.ParameterDict, self.signals[name]).items())
        return HEADS[signal.kind].forward(signal, weights, base_state, inserted_state, unembed)
