"""The inserted stream over vLLM's layers (docs/method.md, "The stream").

The base's modules are vLLM's own and are called as its model calls them; this file reads what goes
into them. The projections of a branch are side by side in one product. Shapes are [tokens, ...],
all sequences of a batch one after the other.
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
# Linear signal heads of at most so many outputs are kept in fp32, whatever the engine's dtype: on a
# CPU, a bfloat16 product took 0.8 ms of a step of 143 ms.
MAX_FP32_OUTPUTS = 64


def parameter(*shape: int, **options: Any) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, **options), requires_grad=False)


def inverse_rms(states: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean x^2 + eps), in the form that the engine's compiler fuses."""
    return states.pow(2).mean(-1, keepdim=True).add(eps).rsqrt()


class EngineNorm(nn.Module):
    """`u = z / rms * g`, with the rms of z (`norm: own`), or that of h (the paper's rule)."""

    def __init__(self, config: InsertionConfig, shape: BaseShape) -> None:
        super().__init__()
        self.weight, self.eps = parameter(config.hidden), shape.norm_eps
        self.own = config.norm == "own"

    def forward(self, z: Tensor, h: Tensor) -> Tensor:
        scale = inverse_rms((z if self.own else h).float(), self.eps)
        return (z.float() * scale).to(z.dtype) * self.weight


class EngineLinear(nn.Module):
    """`x W`, with W as [in, out], which is faster for few columns. Half precision on a CPU takes
    the engine's own kernels: torch would pack W at every call."""

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
        """Packs W for the engine's CPU kernels, once it is loaded."""
        if self.weight.device.type == "cpu" and self.weight.dtype != torch.float32:
            linear: Any = nn.Module()
            linear.weight = nn.Parameter(self.weight.t().contiguous(), requires_grad=False)
            dispatch_cpu_unquantized_gemm(linear, remove_weight=False)
            self.packed = lambda x: linear.cpu_linear(x, linear.weight, None)


class EngineDualInputLinear(nn.Module):
    """`x W^h + u W^z (+ b)`, for one projection or several side by side. Two products are faster
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
        for kind, target in (("h", self.h), ("z", self.z)):
            weights = [select_places(stored[f"{name}.{kind}.weight"], rows) for name, rows in parts]
            target.weight.copy_(torch.cat(weights).t())
        if self.bias is not None:
            self.bias.copy_(
                torch.cat([select_places(stored[f"{name}.bias"], rows) for name, rows in parts])
            )


class EngineBranch(nn.Module):
    """`z += t W^h + t' W^z (+ b)`, summed over the ranks. t [tokens, base_dim] is the base's
    attention output or m, t' [tokens, inserted_dim] the insertion's."""

    def __init__(self, layout: RankLayout, base_dim: int, inserted_dim: int, bias: bool) -> None:
        super().__init__()
        D = layout.config.hidden
        self.ranks, self.columns = layout.ranks, layout.base_columns(base_dim)
        self.h = EngineLinear(len(self.columns), D)
        self.z = EngineLinear(inserted_dim, D) if inserted_dim else None
        self.bias = parameter(D) if bias else None

    def forward(self, z: Tensor, base_out: Tensor, inserted_out: Tensor | None) -> Tensor:
        if self.ranks > 1:
            added = self._plus_inserted(self.h(base_out), inserted_out)
            z = z + tensor_model_parallel_all_reduce(added)
        else:
            z = self._plus_inserted(self.h.plus(z, base_out), inserted_out)
        return z if self.bias is None else z + self.bias

    def _plus_inserted(self, out: Tensor, inserted_out: Tensor | None) -> Tensor:
        return out if inserted_out is None or self.z is None else self.z.plus(out, inserted_out)

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
        places = [layout.heads, *([layout.kv_heads] * 2 if config.kv == "own" else [])]
        self.parts = [TrainedHeads.of(part) for part in places] if config.heads else []
        self.rows = [len(part.heads) * self.size for part in self.parts]
        inserted_dim = self.rows[0] if config.heads else 0
        self.out = EngineBranch(layout, shape.heads * self.size, inserted_dim, shape.out_bias)
        if not config.heads:
            return
        self.norm = EngineNorm(config, shape)
        self.project = EngineDualInputLinear(
            shape.hidden, config.hidden, sum(self.rows), shape.attention_bias
        )
        normed, shared = bool(shape.family.attention.query_norm), config.kv == "base"
        self.query_norm = parameter(self.size) if normed else None
        self.key_norm = parameter(self.size) if normed and not shared else None
        keys = self._shared_cache(base) if shared else {"num_kv_heads": len(layout.kv_heads)}
        self.attend = Attention(
            self.parts[0].places,
            self.size,
            base.scaling,
            per_layer_sliding_window=base.attn.sliding_window,
            prefix=prefix,
            **keys,
            **engine,
        )

    def _shared_cache(self, base: Any) -> dict[str, Any]:
        """Arguments of an attention layer that reads the base's cache: all its heads, or the slice
        that is needed, where the backend can read one."""
        queries, kv_heads = self.parts[0], base.num_kv_heads
        target = {"kv_sharing_target_layer_name": base.attn.layer_name}
        kv_slice = KVSlice.of(queries, queries.places // kv_heads)
        backend = None
        if kv_slice.count < kv_heads:
            backend = slice_backend(base.attn.attn_backend, kv_slice.count)
        if backend is None:
            return {**target, "num_kv_heads": kv_heads}
        self.parts[0] = TrainedHeads(queries.heads, 0, 0)
        return {
            **target,
            "num_kv_heads": kv_slice.count,
            "attn_backend": backend,
            "first_kv_head": kv_slice.first,
        }

    def prepare(
        self, z: Tensor, x: Tensor, h: Tensor, positions: Tensor, rotary: Any
    ) -> list[Tensor]:
        """The inputs of the engine's attention: queries, and with `kv: own` keys and values. They
        are computed before the base's attention runs, so that nothing has to be compiled between
        the two."""
        if not self.parts:
            return []
        query, *own = self.project(x, self.norm(z, h)).split(self.rows, -1)
        query, key = self._normed(query, self.query_norm).contiguous(), None
        if own:
            key = self._normed(own[0], self.key_norm).contiguous()
        query, key = rotary(positions, query, key)
        states = [query, key, own[1]] if own else [query]
        return [p.pad(s, self.size) for p, s in zip(self.parts, states, strict=True)]

    def attention_output(self, inputs: list[Tensor]) -> Tensor | None:
        """The inserted heads' output for what `prepare` returned. It must run after the base's
        attention, which writes the shared keys and values."""
        if not inputs:
            return None
        out = self.attend(*inputs) if len(inputs) > 1 else self.attend(inputs[0], None, None)
        return self.parts[0].unpad(out, self.size)

    def _normed(self, flat: Tensor, weight: Tensor | None) -> Tensor:
        if weight is None:
            return flat
        heads = flat.unflatten(-1, (-1, len(weight)))
        scale = inverse_rms(heads.float(), self.layout.shape.norm_eps)
        return ((heads.float() * scale).to(flat.dtype) * weight).flatten(-2)

    def load(self, stored: StoredTensors) -> None:
        places = [self.layout.rows_of_heads(part.heads) for part in self.parts]
        self.out.load(stored, "out", places[0] if places else [])
        if not places:
            return
        self.norm.weight.copy_(stored["norm.weight"])
        self.project.load(stored, ["query", "key", "value"][: len(places)], places)
        for name in ("query_norm", "key_norm"):
            if (weight := getattr(self, name)) is not None:
                weight.copy_(stored[f"{name}.weight"])


class EngineFeedForward(nn.Module):
    """`m' = act(x W_g^h + u W_g^z) * (x W_u^h + u W_u^z)` (docs/method.md, "FFN units")."""

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
    """One insertion and its signal heads. Its layers run beside the base's, or after groups of
    them (`deferred`)."""

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
        self.deferred = DeferredLayers.of(layout, layers, prefix)
        for index in config.layers if self.deferred is None else ():
            name = f"{prefix}.layers.{index}.otter_{config.name}.attn"
            base = layers[index].self_attn
            self.attention[str(index)] = EngineAttention(layout, base, name, **engine)
            self.ffn[str(index)] = EngineFeedForward(layout)
        self.norm = EngineNorm(config, shape) if config.hidden and self.deferred is None else None
        self.signals = cast(dict[str, nn.ParameterDict], nn.ModuleDict())
        for signal in config.signals:
            shapes = HEADS[signal.kind].shapes(signal, shape.hidden, config.hidden, shape.vocab)
            linear = signal.kind in ("value", "classes") and signal.size <= MAX_FP32_OUTPUTS
            options = {"dtype": torch.float32} if linear else {}
            parts = {name: parameter(*dims, **options) for name, dims in shapes.items()}
            self.signals[signal.name] = nn.ParameterDict(parts)

    @property
    def compile_key(self) -> dict[str, Any]:
        """What the compiled code depends on."""
        groups = None if self.deferred is None else sorted(self.deferred.groups)
        return {"insertion": self.config.model_dump(mode="json"), "deferred": groups}

    def embed(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """The stream's first state z [tokens, D], in the dtype of the base's `hidden`."""
        if self.embedding is None:
            z = hidden.new_zeros(len(tokens), self.hidden)
        else:
            z = F.embedding(tokens, self.embedding)
        return z if self.deferred is None else z.float()

    def layer(self, index: int) -> tuple[EngineAttention, EngineFeedForward] | None:
        """What runs beside a layer of the base; None for nothing."""
        key = str(index)
        return (self.attention[key], self.ffn[key]) if key in self.attention else None

    def final_norm(self, z: Tensor, h: Tensor) -> Tensor:
        """v [tokens, D]; deferred layers have applied the norm already."""
        return z.to(h.dtype) if self.norm is None else self.norm(z, h)

    def load(self, stored: StoredTensors) -> None:
        """Loads this insertion's tensors, from those of all insertions by their full names."""
        stored = _below(stored, f"otter.{self.config.name}.")
        if self.embedding is not None:
            self.embedding.copy_(stored["embedding.weight"])
        for index in self.attention:
            self.attention[index].load(_below(stored, f"layers.{index}.attention."))
            self.ffn[index].load(_below(stored, f"layers.{index}.ffn."))
        if self.deferred is not None:
            self.deferred.load(stored)
        if self.norm is not None:
            self.norm.weight.copy_(stored["norm.weight"])
        for name, parts in self.signals.items():
            for part, weight in parts.items():
                weight.copy_(stored[f"signals.{name}.{part}"])
        for module in self.modules():
            if isinstance(module, EngineLinear):
                module.pack()


def _below(stored: StoredTensors, prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, without it."""
    return {n.removeprefix(prefix): t for n, t in stored.items() if n.startswith(prefix)}
