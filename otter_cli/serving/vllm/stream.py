"""The inserted stream over vLLM's layers, with the projections of a branch side by side.

The base's modules are vLLM's own and are called as its model calls them; this file reads what goes
into them. Shapes are [tokens, ...], all sequences of a batch one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN
from vllm.distributed import tensor_model_parallel_all_reduce
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

from otter_cli.families.shape import BaseShape
from otter_cli.graft.config import InsertionConfig
from otter_cli.serving.vllm.cpu.deferred_layers import DeferredLayers
from otter_cli.serving.vllm.cpu.kv_cache import slice_backend
from otter_cli.serving.vllm.rank_layout import KVSlice, RankLayout, TrainedHeads, select_places
from otter_cli.signals.heads import HEADS

StoredTensors = Mapping[str, Tensor]
# Numbers of a linear head that is in single precision whatever the engine is: in bfloat16, on a
# processor, its product took 0.8 ms of a step of 143.
MAX_FP32_OUTPUTS = 64


def parameter(*shape: int, **more: Any) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, **more), requires_grad=False)


def inverse_rms(measured: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean x^2 + eps), in the form that the engine's compiler fuses."""
    return measured.pow(2).mean(-1, keepdim=True).add(eps).rsqrt()


class EngineNorm(nn.Module):
    """`u = z / rms * g`, by the rms of z, or of h (the paper's rule)."""

    def __init__(self, config: InsertionConfig, shape: BaseShape) -> None:
        super().__init__()
        self.weight, self.eps = parameter(config.hidden), shape.norm_eps
        self.own = config.norm == "own"

    def forward(self, z: Tensor, h: Tensor) -> Tensor:
        scale = inverse_rms((z if self.own else h).float(), self.eps)
        return (z.float() * scale).to(z.dtype) * self.weight


class EngineLinear(nn.Module):
    """`x W`, W as [in, out]: a few columns are multiplied faster so. Half precision on a CPU takes
    the engine's own kernels, since torch would pack W at every call."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.weight = parameter(rows, columns)
        self.packed: Callable[[Tensor], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight if self.packed is None else self.packed(x)

    def plus(self, term: Tensor, x: Tensor) -> Tensor:
        """`term + x W`."""
        return torch.addmm(term, x, self.weight) if self.packed is None else term + self.packed(x)

    def pack(self) -> None:
        """Once W is there."""
        if self.weight.device.type == "cpu" and self.weight.dtype != torch.float32:
            linear: Any = nn.Module()
            linear.weight = nn.Parameter(self.weight.t().contiguous(), requires_grad=False)
            dispatch_cpu_unquantized_gemm(linear, remove_weight=False)
            self.packed = lambda x: linear.cpu_linear(x, linear.weight, None)


class EngineDualInputLinear(nn.Module):
    """`x W^h + u W^z (+ b)`, of one projection or several side by side. Two products are faster
    than one over [x ; u]."""

    def __init__(self, base: int, inserted: int, out: int, bias: bool) -> None:
        super().__init__()
        self.h = EngineLinear(base, out)
        self.z = EngineLinear(inserted, out)
        self.bias = parameter(out) if bias else None

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        return self.z.plus(self.h(x) if self.bias is None else self.h.plus(self.bias, x), u)

    def load(self, stored: StoredTensors, names: list[str], places: list[list[int]]) -> None:
        parts = list(zip(names, places, strict=True))
        for kind, into in (("h", self.h), ("z", self.z)):
            read = [select_places(stored[f"{name}.{kind}.weight"], at) for name, at in parts]
            into.weight.copy_(torch.cat(read).t())
        if self.bias is not None:
            self.bias.copy_(
                torch.cat([select_places(stored[f"{name}.bias"], at) for name, at in parts])
            )


class EngineBranch(nn.Module):
    """`z += t W^h + t' W^z (+ b)`, summed over the ranks."""

    def __init__(self, layout: RankLayout, wide: int, thin: int, bias: bool) -> None:
        super().__init__()
        D = layout.config.hidden
        self.ranks, self.columns = layout.ranks, layout.base_columns(wide)
        self.h = EngineLinear(len(self.columns), D)
        self.z = EngineLinear(thin, D) if thin else None
        self.bias = parameter(D) if bias else None

    def forward(self, z: Tensor, wide: Tensor, thin: Tensor | None) -> Tensor:
        if self.ranks > 1:
            z = z + tensor_model_parallel_all_reduce(self._plus(self.h(wide), thin))
        else:
            z = self._plus(self.h.plus(z, wide), thin)
        return z if self.bias is None else z + self.bias

    def _plus(self, out: Tensor, thin: Tensor | None) -> Tensor:
        return out if thin is None or self.z is None else self.z.plus(out, thin)

    def load(self, stored: StoredTensors, name: str, places: list[int]) -> None:
        self.h.weight.copy_(select_places(stored[f"{name}.h.weight"], self.columns, 1).t())
        if self.z is not None:
            self.z.weight.copy_(select_places(stored[f"{name}.z.weight"], places, 1).t())
        if self.bias is not None:
            self.bias.copy_(stored[f"{name}.bias"])


class EngineAttention(nn.Module):
    """Inserted heads: an attention layer of the engine that reads the base layer's key/value cache
    (`kv: base`), or has one of its own."""

    def __init__(self, layout: RankLayout, base: Any, prefix: str, **engine: Any) -> None:
        super().__init__()
        config, shape = layout.config, layout.shape
        self.layout, self.size = layout, shape.head_dim
        held = [layout.heads, *([layout.kv_heads] * 2 if config.kv == "own" else [])]
        self.parts = [TrainedHeads.of(places) for places in held] if config.heads else []
        self.rows = [len(part.heads) * self.size for part in self.parts]
        thin = self.rows[0] if config.heads else 0
        self.out = EngineBranch(layout, shape.heads * self.size, thin, shape.out_bias)
        if not config.heads:
            return
        self.norm = EngineNorm(config, shape)
        self.project = EngineDualInputLinear(
            shape.hidden, config.hidden, sum(self.rows), shape.attention_bias
        )
        normed, shared = bool(shape.family.attention.query_norm), config.kv == "base"
        self.query_norm = parameter(self.size) if normed else None
        self.key_norm = parameter(self.size) if normed and not shared else None
        keys = self._sharing(base) if shared else {"num_kv_heads": len(layout.kv_heads)}
        self.attend = Attention(
            self.parts[0].places,
            self.size,
            base.scaling,
            per_layer_sliding_window=base.attn.sliding_window,
            prefix=prefix,
            **keys,
            **engine,
        )

    def _sharing(self, base: Any) -> dict[str, Any]:
        """Of an attention layer that reads the base's cache: all of it, or no more than is read."""
        queries, every = self.parts[0], base.num_kv_heads
        target = {"kv_sharing_target_layer_name": base.attn.layer_name}
        span = KVSlice.of(queries, queries.places // every)
        narrow = slice_backend(base.attn.attn_backend, span.count) if span.count < every else None
        if narrow is None:
            return {**target, "num_kv_heads": every}
        self.parts[0] = TrainedHeads(queries.heads, 0, 0)
        return {
            **target,
            "num_kv_heads": span.count,
            "attn_backend": narrow,
            "first_kv_head": span.first,
        }

    def ask(self, z: Tensor, x: Tensor, h: Tensor, positions: Tensor, rotary: Any) -> list[Tensor]:
        """What the inserted heads give the engine's attention: queries, and keys and values of
        their own. It is made before the base's attention runs, so that nothing has to be compiled
        between the two."""
        if not self.parts:
            return []
        query, *own = self.project(x, self.norm(z, h)).split(self.rows, -1)
        query, key = self._normed(query, self.query_norm).contiguous(), None
        if own:
            key = self._normed(own[0], self.key_norm).contiguous()
        query, key = rotary(positions, query, key)
        states = [query, key, own[1]] if own else [query]
        return [p.filled(s, self.size) for p, s in zip(self.parts, states, strict=True)]

    def attended(self, asked: list[Tensor]) -> Tensor | None:
        """After the base's attention, which has written the keys and values that are shared."""
        if not asked:
            return None
        found = self.attend(*asked) if len(asked) > 1 else self.attend(asked[0], None, None)
        return self.parts[0].taken(found, self.size)

    def _normed(self, flat: Tensor, weight: Tensor | None) -> Tensor:
        if weight is None:
            return flat
        heads = flat.unflatten(-1, (-1, len(weight)))
        scale = inverse_rms(heads.float(), self.layout.shape.norm_eps)
        return ((heads.float() * scale).to(flat.dtype) * weight).flatten(-2)

    def load(self, stored: StoredTensors) -> None:
        places = [self.layout.of_heads(part.heads) for part in self.parts]
        self.out.load(stored, "out", places[0] if places else [])
        if not places:
            return
        self.norm.weight.copy_(stored["norm.weight"])
        self.project.load(stored, ["query", "key", "value"][: len(places)], places)
        for name in ("query_norm", "key_norm"):
            if (weight := getattr(self, name)) is not None:
                weight.copy_(stored[f"{name}.weight"])


class EngineFeedForward(nn.Module):
    """`m' = act(x W_g^h + u W_g^z) * (x W_u^h + u W_u^z)`."""

    def __init__(self, layout: RankLayout) -> None:
        super().__init__()
        config, shape = layout.config, layout.shape
        self.layout = layout
        self.down = EngineBranch(layout, shape.ffn, len(layout.units), shape.ffn_bias)
        if config.ffn:
            rows = 2 * len(layout.units)
            self.norm = EngineNorm(config, shape)
            self.gate_up = EngineDualInputLinear(shape.hidden, config.hidden, rows, shape.ffn_bias)
            self.activation = ACT2FN[shape.activation]

    def forward(self, z: Tensor, x: Tensor, h: Tensor, m: Tensor) -> Tensor:
        if not self.layout.config.ffn:
            return self.down(z, m, None)
        gate, up = self.gate_up(x, self.norm(z, h)).chunk(2, -1)
        return self.down(z, m, self.activation(gate) * up)

    def load(self, stored: StoredTensors) -> None:
        units = self.layout.units
        self.down.load(stored, "down", units)
        if self.layout.config.ffn:
            self.norm.weight.copy_(stored["norm.weight"])
            self.gate_up.load(stored, ["gate", "up"], [units, units])


class EngineStream(nn.Module):
    """One insertion beside the base's layers, or behind some of them (`waiting`), and its signal
    heads."""

    def __init__(
        self, layout: RankLayout, layers: Mapping[int, Any], prefix: str, **engine: Any
    ) -> None:
        super().__init__()
        config, shape = layout.config, layout.shape
        self.config, self.hidden = config, config.hidden
        table = config.hidden and config.embedding == "table"
        self.embedding = parameter(shape.vocab, config.hidden) if table else None
        self.attention = cast(dict[str, EngineAttention], nn.ModuleDict())
        self.ffn = cast(dict[str, EngineFeedForward], nn.ModuleDict())
        self.waiting = DeferredLayers.of(layout, layers, prefix)
        for index in config.layers if self.waiting is None else ():
            place = f"{prefix}.layers.{index}.otter_{config.name}.attn"
            base = layers[index].self_attn
            self.attention[str(index)] = EngineAttention(layout, base, place, **engine)
            self.ffn[str(index)] = EngineFeedForward(layout)
        self.norm = EngineNorm(config, shape) if config.hidden and self.waiting is None else None
        self.signals = cast(dict[str, nn.ParameterDict], nn.ModuleDict())
        for signal in config.signals:
            shapes = HEADS[signal.kind].shapes(signal, shape.hidden, config.hidden, shape.vocab)
            linear = signal.kind in ("value", "classes") and signal.size <= MAX_FP32_OUTPUTS
            few = {"dtype": torch.float32} if linear else {}
            parts = {name: parameter(*form, **few) for name, form in shapes.items()}
            self.signals[signal.name] = nn.ParameterDict(parts)

    @property
    def described(self) -> dict[str, Any]:
        """What its code is compiled of."""
        waiting = None if self.waiting is None else sorted(self.waiting.groups)
        return {"insertion": self.config.model_dump(mode="json"), "waiting": waiting}

    def start(self, tokens: Tensor, like: Tensor) -> Tensor:
        if self.embedding is None:
            z = like.new_zeros(len(tokens), self.hidden)
        else:
            z = F.embedding(tokens, self.embedding)
        return z if self.waiting is None else z.float()

    def layer(self, index: int) -> tuple[EngineAttention, EngineFeedForward] | None:
        """What runs beside a layer of the base."""
        place = str(index)
        return (self.attention[place], self.ffn[place]) if place in self.attention else None

    def end(self, z: Tensor, h: Tensor) -> Tensor:
        """v [tokens, D]."""
        return z.to(h.dtype) if self.norm is None else self.norm(z, h)

    def load(self, stored: StoredTensors) -> None:
        """Takes every tensor of the insertion, by its name within it."""
        if self.embedding is not None:
            self.embedding.copy_(stored["embedding.weight"])
        for index in self.attention:
            self.attention[index].load(_below(stored, f"layers.{index}.attention."))
            self.ffn[index].load(_below(stored, f"layers.{index}.ffn."))
        if self.waiting is not None:
            self.waiting.load(stored)
        if self.norm is not None:
            self.norm.weight.copy_(stored["norm.weight"])
        for name, parts in self.signals.items():
            for part, own in parts.items():
                own.copy_(stored[f"signals.{name}.{part}"])
        for module in self.modules():
            if isinstance(module, EngineLinear):
                module.pack()


def _below(stored: StoredTensors, prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in stored.items() if n.startswith(prefix)}
