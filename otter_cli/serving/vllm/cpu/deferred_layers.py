"""Inserted layers that run after groups of the base's layers, each group in one native call.

A stream reads the base and never writes to it. With `kv: base`, a token's stream needs only the
base's cache and the activations of that token. So the stream may run later, and rows whose signals
no request reads, such as those of prompts, are left out.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from vllm.config import VllmConfig, get_current_vllm_config
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.attention.attention import get_attention_context
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding
from vllm.platforms import current_platform
from vllm.utils.torch_utils import direct_register_custom_op

from otter_cli.accel.native_abi import POINTERS_OF_HEADS, WEIGHTS_PER_LAYER, StreamCall
from otter_cli.accel.native_call import DTYPE_NUMBERS, TensorAddresses, array_address
from otter_cli.accel.native_library import load_native
from otter_cli.serving.vllm.cpu.kv_cache import check_cache, is_known_layout, is_plain_attention
from otter_cli.serving.vllm.cpu.step_rows import StepRows
from otter_cli.serving.vllm.rank_layout import RankLayout

# Activations of the base that are held for a group, at the engine's largest batch, take at most so
# much memory, or that of one layer.
MAX_HELD_BYTES = 256 << 20
TAPS_PER_LAYER = 4  # of a layer: normed h, attention's output, normed h again, m


class DeferredLayers:
    """The inserted layers of one stream, computed after groups of the base's layers.
    `requested_rows`: sequences of the batch, by row, whose last token's signals are read. With None
    every token is computed, as where texts are scored."""

    def __init__(
        self, layout: RankLayout, layers: Mapping[int, Any], prefix: str, native: Any
    ) -> None:
        self.config, shape = layout.config, layout.shape
        self.name, self._native = f"{prefix}.otter_{self.config.name}", native.otter_stream
        self.requested_rows: tuple[int, ...] | None = None
        self.order = {index: place for place, index in enumerate(sorted(self.config.layers))}
        self.attention = [layers[index].self_attn.attn for index in self.order]
        inputs = shape.hidden, shape.heads * shape.head_dim, shape.hidden, shape.ffn
        engine = get_current_vllm_config()
        half = engine.model_config.dtype == torch.bfloat16
        # The dtype of the base's activations, and of the weights that multiply them.
        self.dtype = torch.bfloat16 if half else torch.float32
        self.groups = self._groups(engine, sum(inputs))
        self.call = StreamCall(
            batch=1,
            hidden=self.config.hidden,
            in_heads=inputs[0] if self.config.heads else 0,
            in_out=inputs[1],
            in_units=inputs[2] if self.config.ffn else 0,
            in_down=inputs[3],
            heads=self.config.heads,
            kv_heads=self.config.kv_heads,
            head_dim=shape.head_dim,
            units=self.config.ffn,
            base_dtype=DTYPE_NUMBERS[self.dtype],
            eps=shape.norm_eps,
            scale=layers[min(self.order)].self_attn.scaling,
        )
        # Empty until weights are loaded: an engine may run with dummy weights.
        self._weights, self._weight_table = TensorAddresses(), array("q")
        self._step: tuple[Any, StepRows | None] = (None, None)
        engine.compilation_config.static_forward_context[self.name] = self

    @classmethod
    def of(
        cls, layout: RankLayout, layers: Mapping[int, Any], prefix: str
    ) -> DeferredLayers | None:
        """None where native code does not support the insertion, or cannot read the engine's
        cache."""
        native = load_native() if _can_defer(layout, layers) else None
        return None if native is None else cls(layout, layers, prefix, native)

    def _groups(self, engine: VllmConfig, width: int) -> dict[int, int]:
        """The last layer of each group, and the place in `order` at which the group begins."""
        of_layer = engine.model_config.dtype.itemsize * width
        size = MAX_HELD_BYTES // (of_layer * engine.scheduler_config.max_num_batched_tokens) or 1
        last = len(self.order) - 1
        return {
            index: place - place % size
            for index, place in self.order.items()
            if place % size == size - 1 or place == last
        }

    def load(self, stored: Mapping[str, Tensor]) -> None:
        """Loads the tensors of the layers and of the final norm, by name. They replace those of an
        earlier call, where an engine loads again."""
        self._weights, self._weight_table = TensorAddresses(), array("q")
        norm, linear = ["weight", "bias"], ["h.weight", "z.weight", "bias"]
        for index in self.order:
            layer = f"layers.{index}."
            self._add_addresses(stored, [f"{layer}attention.norm"], norm)
            self._add_addresses(stored, [f"{layer}attention.query"], linear)
            for name in ("query_norm", "key_norm"):
                self._add_addresses(stored, [f"{layer}attention.{name}"], ["weight"])
            self._add_addresses(stored, [f"{layer}attention.out"], linear)
            self._add_addresses(stored, [f"{layer}ffn.norm"], norm)
            self._add_addresses(stored, [f"{layer}ffn.gate", f"{layer}ffn.up"], linear)
            self._add_addresses(stored, [f"{layer}ffn.down"], linear)
        self._add_addresses(stored, ["norm"], norm)

    def _add_addresses(
        self, stored: Mapping[str, Tensor], names: list[str], parts: list[str]
    ) -> None:
        """One address for each part: of the tensors of all names, concatenated; 0 for none."""
        for part in parts:
            tensors = [stored[f"{name}.{part}"] for name in names if f"{name}.{part}" in stored]
            dtype = self.dtype if part == "h.weight" else torch.float32
            weight = torch.cat(tensors) if tensors else None
            self._weight_table.append(self._weights.kept(weight, dtype))

    def cos_sin(self, layers: Any, positions: Tensor) -> Tensor:
        """Cosines and sines of the queries' rotation, [2, tokens, head_dim]; empty without
        heads."""
        if not self.config.heads:
            return positions.new_empty(0, dtype=torch.float32)
        rotary = layers[min(self.order)].self_attn.rotary_emb
        cos, sin = rotary.cos_sin_cache[positions].float().chunk(2, -1)
        return torch.stack([torch.cat([cos, cos], -1), torch.cat([sin, sin], -1)])

    def run_group(
        self, index: int, z: Tensor, taps: list[Tensor], positions: Tensor, cos_sin: Tensor
    ) -> Tensor:
        """z [tokens, D] after the group of layers that ends with `index`; after the last group v,
        its norm. Rows that are left out hold unspecified values."""
        op = torch.ops.vllm.otter_layers
        return op(z, taps, positions, cos_sin, self.name, self.groups[index])[0]

    def run(
        self, z: Tensor, taps: list[Tensor], positions: Tensor, cos_sin: Tensor, first: int
    ) -> Tensor:
        """The implementation of `run_group`'s operator, for the group that begins at place
        `first`."""
        rows = self._rows(positions)
        if rows is None:
            return z.clone()
        call, count = self.call, len(taps) // TAPS_PER_LAYER
        call.tokens, call.layers, call.slots = rows.count, count, rows.longest
        memory, addresses = TensorAddresses(), array("q")
        memory.held = [rows.select(tap) for tap in taps]
        selected_cos_sin = rows.select(cos_sin, 1) if self.config.heads else None
        for place in range(count):
            layer_taps = memory.held[TAPS_PER_LAYER * place : TAPS_PER_LAYER * (place + 1)]
            addresses.extend(memory.at(tap, self.dtype) for tap in layer_taps)
            if selected_cos_sin is None:
                addresses.extend([0] * POINTERS_OF_HEADS)
                continue
            cache = self.attention[first + place].kv_cache
            call.pages = ctypes.addressof(rows.pages_for(cache))
            keys = cache.data_ptr() + self.config.kv_start * cache.stride(1) * cache.itemsize
            rotation = selected_cos_sin[0].data_ptr(), selected_cos_sin[1].data_ptr()
            addresses.extend((keys, 0, *[0] * 6, *rotation, 0))
        out = z.clone() if rows.places is None else rows.select(z)
        last = first + count == len(self.order)
        v = torch.empty_like(out) if last else None
        targets = ctypes.c_void_p(out.data_ptr()), ctypes.c_void_p(0 if v is None else v.data_ptr())
        weights = array_address(self._weight_table, first * WEIGHTS_PER_LAYER)
        self._native(ctypes.byref(call), weights, array_address(addresses), *targets)
        result = out if v is None else v
        return result if rows.places is None else z.index_copy(0, rows.places, result)

    def _rows(self, positions: Tensor) -> StepRows | None:
        """The rows of this step; None where no signal is read, or the engine runs a dummy batch."""
        metadata, attention, cache, _ = get_attention_context(self.attention[0].layer_name)
        if metadata is None or self.requested_rows == () or not self._weight_table:
            return None
        if self._step[0] is not metadata:
            if self.config.heads:
                check_cache(attention, cache)
            self._step = metadata, StepRows.of(metadata, positions, self.requested_rows)
        return self._step[1]


def _can_defer(layout: RankLayout, layers: Mapping[int, Any]) -> bool:
    config, shape = layout.config, layout.shape
    engine = get_current_vllm_config()
    supported = (
        current_platform.is_cpu()
        and layout.ranks == 1
        and bool(config.hidden and config.layers)
        and config.norm == "own"
        and shape.activation in ("silu", "swish")
    )
    if not supported or not config.heads:
        return supported
    rotaries = [layers[index].self_attn.rotary_emb for index in config.layers]
    return (
        config.kv == "base"
        and all(_is_standard_rotary(rotary, shape.head_dim) for rotary in rotaries)
        and all(rotary is rotaries[0] for rotary in rotaries)
        # In all layers: otherwise the engine keeps several tables of blocks.
        and all(is_plain_attention(layer.self_attn.attn) for layer in layers.values())
        and is_known_layout(engine.model_config.dtype, shape.head_dim)
    )


def _is_standard_rotary(rotary: Any, head_dim: int) -> bool:
    """Whether a rotation is the usual one of whole heads, with any angles."""
    usual = type(rotary).forward_native is RotaryEmbedding.forward_native
    return usual and rotary.is_neox_style and rotary.rotary_dim == head_dim


def _otter_layers(
    z: Tensor, taps: list[Tensor], positions: Tensor, turn: Tensor, name: str, first: int
) -> list[Tensor]:
    """Runs the layers that `name` stands for. The result is a list of one tensor: the compiler
    would move an operator with a single result to its reader, which is after the whole base, and
    all taps would be held until then."""
    layers: DeferredLayers = get_forward_context().no_compile_layers[name]
    return [layers.run(z, taps, positions, turn, first)]


def _otter_layers_fake(
    z: Tensor, taps: list[Tensor], positions: Tensor, turn: Tensor, name: str, first: int
) -> list[Tensor]:
    return [torch.empty_like(z)]


direct_register_custom_op(
    op_name="otter_layers", op_func=_otter_layers, fake_impl=_otter_layers_fake
)
