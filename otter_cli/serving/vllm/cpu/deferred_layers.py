"""Inserted layers that run behind groups of the base's layers, each group in one native call.

A stream reads the base and never writes to it. With `kv: base` a token's stream needs only the
base's cache and activations of that token. So the stream may run later, and rows whose signals
nobody asked for, such as those of prompts, are left out.
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

from otter_cli.accel.native_library import (
    POINTERS_OF_HEADS,
    WEIGHTS_PER_LAYER,
    StreamCall,
    TensorAddresses,
    array_address,
    load_native,
)
from otter_cli.serving.vllm.cpu.kv_cache import check_cache, is_known_layout, is_plain_attention
from otter_cli.serving.vllm.cpu.step_rows import StepRows
from otter_cli.serving.vllm.rank_layout import RankLayout

# What the base makes of its largest batch may wait as long as it takes no more than this.
MAX_HELD_BYTES = 256 << 20
TAPS_PER_LAYER = 4  # of a layer: normed h, attention's output, normed h again, m


class DeferredLayers:
    """The inserted layers of one stream, computed behind groups of the base's.

    `asking`: sequences of the batch, by row of it, that want numbers beside their last token; None:
    every token is computed, as where texts are scored.
    """

    def __init__(
        self, layout: RankLayout, layers: Mapping[int, Any], prefix: str, native: Any
    ) -> None:
        self.config, shape = layout.config, layout.shape
        self.name, self._native = f"{prefix}.otter_{self.config.name}", native.otter_stream
        self.asking: tuple[int, ...] | None = None
        self.order = {index: place for place, index in enumerate(sorted(self.config.layers))}
        self.attention = [layers[index].self_attn.attn for index in self.order]
        inputs = shape.hidden, shape.heads * shape.head_dim, shape.hidden, shape.ffn
        engine = get_current_vllm_config()
        half = engine.model_config.dtype == torch.bfloat16
        # As which the base's activations are read, and the weights that these meet.
        self.dtype = torch.bfloat16 if half else torch.float32
        self.groups = self._groups(engine, sum(inputs))
        self.form = StreamCall(
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
            half=half,
            eps=shape.norm_eps,
            scale=layers[min(self.order)].self_attn.scaling,
        )
        self._held, self._table = (
            TensorAddresses(),
            array("q"),
        )  # without weights: the engine has dummies
        self._step: tuple[Any, StepRows | None] = (None, None)
        engine.compilation_config.static_forward_context[self.name] = self

    @classmethod
    def of(
        cls, layout: RankLayout, layers: Mapping[int, Any], prefix: str
    ) -> DeferredLayers | None:
        """None where native code does not know the form, or cannot read the engine's cache."""
        native = load_native() if _can_defer(layout, layers) else None
        return None if native is None else cls(layout, layers, prefix, native)

    def _groups(self, engine: VllmConfig, width: int) -> dict[int, int]:
        """The last layer of each group, and the place in `order` at which it begins."""
        of_layer = engine.model_config.dtype.itemsize * width
        size = MAX_HELD_BYTES // (of_layer * engine.scheduler_config.max_num_batched_tokens) or 1
        last = len(self.order) - 1
        return {
            index: place - place % size
            for index, place in self.order.items()
            if place % size == size - 1 or place == last
        }

    def load(self, stored: Mapping[str, Tensor]) -> None:
        """Takes the tensors of its layers, and of the norm behind them, by name; instead of those
        that it had, where an engine loads again."""
        self._held, self._table = TensorAddresses(), array("q")
        for index in self.order:
            layer = f"layers.{index}."
            self._take(stored, [f"{layer}attention.norm"], ["weight", "bias"])
            self._take(stored, [f"{layer}attention.query"], ["h.weight", "z.weight", "bias"])
            for norm in ("query_norm", "key_norm"):
                self._take(stored, [f"{layer}attention.{norm}"], ["weight"])
            self._take(stored, [f"{layer}attention.out"], ["h.weight", "z.weight", "bias"])
            self._take(stored, [f"{layer}ffn.norm"], ["weight", "bias"])
            gate_up = [f"{layer}ffn.gate", f"{layer}ffn.up"]
            self._take(stored, gate_up, ["h.weight", "z.weight", "bias"])
            self._take(stored, [f"{layer}ffn.down"], ["h.weight", "z.weight", "bias"])
        self._take(stored, ["norm"], ["weight", "bias"])

    def _take(self, stored: Mapping[str, Tensor], names: list[str], parts: list[str]) -> None:
        """One address for each part: of the names' tensors one below the other, 0 for none."""
        for part in parts:
            found = [stored[f"{name}.{part}"] for name in names if f"{name}.{part}" in stored]
            dtype = self.dtype if part == "h.weight" else torch.float32
            self._table.append(self._held.kept(torch.cat(found) if found else None, dtype))

    def turn(self, layers: Any, positions: Tensor) -> Tensor:
        """Cosines and sines by which queries are turned, [2, tokens, head_dim]."""
        if not self.config.heads:
            return positions.new_empty(0, dtype=torch.float32)
        rotary = layers[min(self.order)].self_attn.rotary_emb
        cos, sin = rotary.cos_sin_cache[positions].float().chunk(2, -1)
        return torch.stack([torch.cat([cos, cos], -1), torch.cat([sin, sin], -1)])

    def behind(
        self, index: int, z: Tensor, taps: list[Tensor], positions: Tensor, turn: Tensor
    ) -> Tensor:
        """z [tokens, D] behind the group of layers that ends with `index`; behind the last of all
        v, its norm. Rows that are left out are anybody's."""
        run = torch.ops.vllm.otter_layers
        return run(z, taps, positions, turn, self.name, self.groups[index])[0]

    def run(
        self, z: Tensor, taps: list[Tensor], positions: Tensor, turn: Tensor, first: int
    ) -> Tensor:
        """`behind`, while the engine runs a step."""
        rows = self._rows(positions)
        if rows is None:
            return z.clone()
        form, count = self.form, len(taps) // TAPS_PER_LAYER
        form.tokens, form.layers, form.slots = rows.count, count, rows.most
        memory, numbers = TensorAddresses(), array("q")
        memory.held = [rows.taken(tap) for tap in taps]
        turned = rows.taken(turn, 1) if self.config.heads else None
        for place in range(count):
            read = memory.held[TAPS_PER_LAYER * place : TAPS_PER_LAYER * (place + 1)]
            numbers.extend(memory.at(tap, self.dtype) for tap in read)
            if turned is None:
                numbers.extend([0] * POINTERS_OF_HEADS)
                continue
            cache = self.attention[first + place].kv_cache
            form.pages = ctypes.addressof(rows.paged(cache))
            keys = cache.data_ptr() + self.config.kv_start * cache.stride(1) * cache.itemsize
            cos_sin = turned[0].data_ptr(), turned[1].data_ptr()
            numbers.extend((keys, 0, *[0] * 6, *cos_sin, 0))
        here = z.clone() if rows.places is None else rows.taken(z)
        last = first + count == len(self.order)
        v = torch.empty_like(here) if last else None
        to = ctypes.c_void_p(here.data_ptr()), ctypes.c_void_p(0 if v is None else v.data_ptr())
        weights = array_address(self._table, first * WEIGHTS_PER_LAYER)
        self._native(ctypes.byref(form), weights, array_address(numbers), *to)
        made = here if v is None else v
        return made if rows.places is None else z.index_copy(0, rows.places, made)

    def _rows(self, positions: Tensor) -> StepRows | None:
        """Those of this step; None: nobody asks, or the engine tries itself out."""
        metadata, attention, cache, _ = get_attention_context(self.attention[0].layer_name)
        if metadata is None or self.asking == () or not self._table:
            return None
        if self._step[0] is not metadata:
            if self.config.heads:
                check_cache(attention, cache)
            self._step = metadata, StepRows.of(metadata, positions, self.asking)
        return self._step[1]


def _can_defer(layout: RankLayout, layers: Mapping[int, Any]) -> bool:
    config, shape = layout.config, layout.shape
    engine = get_current_vllm_config()
    form = (
        current_platform.is_cpu()
        and layout.ranks == 1
        and bool(config.hidden and config.layers)
        and config.norm == "own"
        and shape.activation in ("silu", "swish")
    )
    if not form or not config.heads:
        return form
    rotaries = [layers[index].self_attn.rotary_emb for index in config.layers]
    return (
        config.kv == "base"
        and all(_is_standard_rotary(one, shape.head_dim) for one in rotaries)
        and all(one is rotaries[0] for one in rotaries)
        # Of all layers: else the engine keeps several tables of blocks.
        and all(is_plain_attention(layer.self_attn.attn) for layer in layers.values())
        and is_known_layout(engine.model_config.dtype, shape.head_dim)
    )


def _is_standard_rotary(rotary: Any, head_dim: int) -> bool:
    """Whether a rotation is the usual one of whole heads, whatever its angles."""
    usual = type(rotary).forward_native is RotaryEmbedding.forward_native
    return usual and rotary.is_neox_style and rotary.rotary_dim == head_dim


def _otter_layers(
    z: Tensor, taps: list[Tensor], positions: Tensor, turn: Tensor, name: str, first: int
) -> list[Tensor]:
    """In a list: what reads a single result the compiler moves to where that is read, which is
    behind the whole base, and all that waits would be held until then."""
    layers: DeferredLayers = get_forward_context().no_compile_layers[name]
    return [layers.run(z, taps, positions, turn, first)]


def _otter_layers_fake(
    z: Tensor, taps: list[Tensor], positions: Tensor, turn: Tensor, name: str, first: int
) -> list[Tensor]:
    return [torch.empty_like(z)]


direct_register_custom_op(
    op_name="otter_layers", op_func=_otter_layers, fake_impl=_otter_layers_fake
)
