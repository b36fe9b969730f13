"""NativeBackend: the layers of one insertion by one call of native code, `otter::stream_layers`.

The call is a torch operator with a schema that names what it reads and writes, so that a trace or
a profile sees the path that users run. Unobserved calls go to its kernel directly: dispatching some
hundred tensors would take longer than a small stream. Addresses of the weights are kept as long as
no parameter moves; those of activations, keys and masks are collected for each call."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._autograd import _profiler_enabled as is_profiling
from torch.utils._python_dispatch import _get_current_dispatch_mode

from otter_cli.accel.backend_choice import cannot_run_native
from otter_cli.accel.native_abi import (
    INPUTS_PER_LAYER,
    MASK_ADDITIVE,
    MASK_BOOLEAN,
    MASK_CAUSAL,
    MASK_NONE,
    POINTERS_OF_HEADS,
    WEIGHTS_PER_LAYER,
    StreamCall,
)
from otter_cli.accel.native_call import (
    DTYPE_NUMBERS,
    TensorAddresses,
    array_address,
    run_native,
)
from otter_cli.accel.native_library import load_native, native_refusal
from otter_cli.accel.native_support import NativeSupport
from otter_cli.accel.packed import (
    FusedLinear,
    PackedBackend,
    ParameterAddresses,
    below_trace,
)
from otter_cli.model.activations import LayerInput
from otter_cli.model.cache import GrowingCacheLayer, ensure_inserted_layer
from otter_cli.model.forward_context import ForwardContext

_OPERATOR = torch.library.Library("otter", "DEF")
# `inputs`: x, a, x of the FFN and m of each layer. `base_kv` or `own_kv`: keys and values of each
# layer, [batch, heads, slots, head_dim]; own ones get those of the new tokens. `weights`: what lies
# behind `weight_table`. `sizes`: StreamCall.hidden to StreamCall.own_kv. Returns z, and after the
# `last` layer of all v.
_OPERATOR.define(
    "stream_layers(Tensor z, Tensor[] inputs, Tensor[] base_kv, Tensor(a!)[] own_kv, Tensor? mask, "
    "Tensor? cos, Tensor? sin, bool[] rotated, Tensor[] weights, int weight_table, int[] sizes, "
    "int slots, float eps, float scale, bool last) -> Tensor[]"
)


def _stream_layers(
    z: Tensor,
    inputs: Sequence[Tensor],
    base_kv: Sequence[Tensor],
    own_kv: Sequence[Tensor],
    mask: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    rotated: Sequence[bool],
    weights: Sequence[Tensor],
    weight_table: int,
    sizes: Sequence[int],
    slots: int,
    eps: float,
    scale: float,
    last: bool,
) -> list[Tensor]:
    with below_trace():
        memory, pointers = TensorAddresses(z.dtype), array("q")
        batch, tokens, _ = z.shape
        kv, layers = base_kv or own_kv, len(inputs) // INPUTS_PER_LAYER
        dtype = DTYPE_NUMBERS[z.dtype]
        call = StreamCall(
            batch,
            tokens,
            layers,
            *sizes,
            slots,
            slots - tokens,
            base_dtype=dtype,
            own_dtype=dtype,
            eps=eps,
            scale=scale,
        )
        mask_address = _set_mask(call, mask, memory)
        cos_sin = 0, 0
        if cos is not None and sin is not None:
            call.turn_of_batch = 0 if len(cos) == 1 else tokens * cos.shape[-1]
            cos_sin = memory.at(cos), memory.at(sin)
        for layer in range(layers):
            start = INPUTS_PER_LAYER * layer
            pointers.extend(map(memory.at, inputs[start : start + INPUTS_PER_LAYER]))
            if not kv:
                pointers.extend([0] * POINTERS_OF_HEADS)
                continue
            key, value = kv[2 * layer], kv[2 * layer + 1]
            turn = cos_sin if rotated[layer] else (0, 0)
            strides = *key.stride()[:3], *value.stride()[:3]
            pointers.extend((key.data_ptr(), value.data_ptr(), *strides, *turn, mask_address))
        z = z.clone()
        results = [z, torch.empty_like(z)] if last else [z]
        run_native(call, weight_table, pointers, z, results[1] if last else None)
        return results


def _stream_layers_meta(z: Tensor, *arguments: Any) -> list[Tensor]:
    return [torch.empty_like(z) for _ in range(1 + arguments[-1])]


_OPERATOR.impl("stream_layers", _stream_layers, "CPU")
_OPERATOR.impl("stream_layers", _stream_layers_meta, "Meta")


def _set_mask(call: StreamCall, mask: Tensor | None, memory: TensorAddresses) -> int:
    """Describes the mask [batch or 1, 1, tokens or 1, slots] in `call`. Returns its address."""
    if mask is None:
        call.mask = MASK_NONE if call.tokens == 1 else MASK_CAUSAL
        return 0
    boolean = mask.dtype == torch.bool
    call.mask = MASK_BOOLEAN if boolean else MASK_ADDITIVE
    mask = mask if boolean or mask.dtype == memory.dtype else mask.to(memory.dtype)
    mask = mask if mask.stride(-1) == 1 else mask.contiguous()
    call.mask_of_batch = 0 if len(mask) == 1 else mask.stride(0)
    call.mask_of_token = 0 if mask.shape[2] == 1 else mask.stride(2)
    memory.held.append(mask)
    return mask.data_ptr()


class WeightAddresses:
    """The addresses of all weights, layer by layer in the order of stream.cpp, then those of the
    final norm."""

    def __init__(self, packed: PackedBackend) -> None:
        self._packed = packed
        self.tensors: list[Tensor] = []
        self.dtype: torch.dtype | None = None
        self._table: array[int] | None = None
        modules = [m for layer in packed.inserted.values() for m in layer.modules()]
        self._parameters = ParameterAddresses([*modules, packed.insertion.norm])

    def available(self) -> bool:
        """Whether all weights are contiguous and of the same dtype, which native code reads. Their
        addresses are known then."""
        if not self._parameters.unchanged():
            with torch.inference_mode(False), torch.no_grad(), below_trace():
                self._table = self._collect()
            self._parameters.remember()
        return self._table is not None

    def at(self, layer: int) -> int:
        """The address of the table's entries from a layer on."""
        assert self._table is not None
        start = array_address(self._table, layer * WEIGHTS_PER_LAYER).value
        assert start is not None
        return start

    def _collect(self) -> array[int] | None:
        # Packed for all layers at once, as PackedBackend needs them too: one storage for both.
        for batched in self._packed.batched:
            if batched is not None:
                batched.pack()
        norm = self._packed.insertion.norm
        tensors = [t for index in self._packed.inserted for t in self._layer_tensors(index)]
        tensors += norm.weight.detach(), None if norm.bias is None else norm.bias.detach()
        self.tensors = [tensor for tensor in tensors if tensor is not None]
        self.dtype = norm.weight.dtype
        if self.dtype not in DTYPE_NUMBERS:
            return None
        if not all(t.dtype == self.dtype and t.is_contiguous() for t in self.tensors):
            return None
        return array("q", [0 if tensor is None else tensor.data_ptr() for tensor in tensors])

    def _layer_tensors(self, index: int) -> list[Tensor | None]:
        layer, products = self._packed.inserted[index], self._packed.layer_products[index]

        def norm(module: Any, name: str, parts: Sequence[str]) -> list[Tensor | None]:
            owner = getattr(module, name, None)
            tensors = [getattr(owner, part, None) for part in parts]
            return [None if tensor is None else tensor.detach() for tensor in tensors]

        def product(fused: Any) -> list[Tensor | None]:
            """W^h and W^z [outputs, inputs], and b."""
            if fused is None:
                return [None, None, None]
            assert isinstance(fused, FusedLinear)
            h, z, bias = fused.weights()
            return [h.t(), None if z is None else z.t(), bias]

        return [
            *norm(layer.attention, "norm", ("weight", "bias")),
            *product(products.heads),
            *norm(layer.attention, "query_norm", ("weight",)),
            *norm(layer.attention, "key_norm", ("weight",)),
            *product(products.out),
            *norm(layer.ffn, "norm", ("weight", "bias")),
            *product(products.units),
            *product(products.down),
        ]


class NativeBackend:
    """The stream of a few tokens on a CPU. Declines what native code does not support, or raises
    OtterError where it is `required`."""

    def __init__(self, packed: PackedBackend, required: bool = False) -> None:
        self._packed, self._required = packed, required
        self.insertion, self.shape, self.depth, self.number = packed.made_of
        self.config = self.insertion.config
        self.support, self.weights = NativeSupport(packed), WeightAddresses(packed)
        self._sizes = _fixed_sizes(packed)
        self._order = {index: place for place, index in enumerate(packed.inserted)}
        self._new: Tensor | None = None

    def __reduce__(self) -> Any:
        return type(self), (self._packed, self._required)

    def refusal(self, z: Tensor, layers: Sequence[LayerInput], context: ForwardContext) -> str:
        """Why native code does not run this call; "" where it does."""
        if context.grad:
            return "it computes no gradients"
        if not context.use_native and not self._required:
            return "torch's products are faster for so many tokens"
        if reason := self.support.refusal(z, layers):
            return reason
        if load_native() is None:
            return native_refusal()
        if not self.weights.available() or self.weights.dtype != z.dtype:
            return "the inserted tensors differ in dtype, or are not contiguous"
        return ""

    def run(
        self, z: Tensor, layers: Sequence[LayerInput], context: ForwardContext
    ) -> tuple[Tensor, Tensor | None] | None:
        if reason := self.refusal(z, layers, context):
            if self._required:
                raise cannot_run_native(reason)
            return None
        first, config = self._order[layers[0].site.index], self.config
        base_kv: list[Tensor] = []
        own_kv: list[Tensor] = []
        mask, slots, scale = None, 0, 0.0
        if config.heads and (call := layers[0].attention.call) is not None:
            mask, slots = call.mask, call.key.shape[2]
            scale = call.arguments.get("scaling") or self.shape.head_dim**-0.5
            if config.kv == "base":
                base_kv = self._base_keys_and_values(layers)
            else:
                own_kv, slots = self._own_keys_and_values(z, layers)
        rotated = [layer.site.apply_rotary is not None for layer in layers]
        cos, sin = self._embeddings(layers) or (None, None)
        observed = _get_current_dispatch_mode() is not None or is_profiling()
        run: Any = torch.ops.otter.stream_layers.default if observed else _stream_layers
        z, *v = run(
            z,
            [t for layer in layers for t in _captured_inputs(layer)],
            base_kv,
            own_kv,
            mask,
            cos,
            sin,
            rotated,
            self.weights.tensors,
            self.weights.at(first),
            self._sizes,
            slots,
            self.shape.norm_eps,
            scale,
            first + len(layers) == len(self._order),
        )
        return z, v[0] if v else None

    @staticmethod
    def _embeddings(layers: Sequence[LayerInput]) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines, which are the same in all layers that rotate."""
        for layer in layers:
            if layer.site.apply_rotary is not None:
                return layer.attention.embeddings
        return None

    def _base_keys_and_values(self, layers: Sequence[LayerInput]) -> list[Tensor]:
        read = slice(self.config.kv_start, self.config.kv_start + self.config.kv_heads)
        calls = [layer.attention.call for layer in layers]
        return [t[:, read] for call in calls if call is not None for t in (call.key, call.value)]

    def _own_keys_and_values(
        self, z: Tensor, layers: Sequence[LayerInput]
    ) -> tuple[list[Tensor], int]:
        """Buffers with reserved slots for the new tokens, and the number of slots with these."""
        new, cache = self._new_heads(z), layers[0].attention.cache
        if cache is None:
            return [torch.empty_like(new) for _ in range(2 * len(layers))], new.shape[2]
        buffers: list[Tensor] = []
        slots = 0
        for layer in layers:
            at = self.number * self.depth + layer.site.index
            own = ensure_inserted_layer(cache, at, depth=self.depth, new_tokens=new.shape[2])
            assert isinstance(own, GrowingCacheLayer)
            slots = own.reserve(new)
            buffers += own.key_buffer, own.value_buffer
        return buffers, slots

    def _new_heads(self, z: Tensor) -> Tensor:
        """Has the shape, dtype and device of one layer's new keys. Its values are unused."""
        batch, tokens, _ = z.shape
        new = self._new
        if new is None or new.shape[0] != batch or new.shape[2] != tokens:
            new = z.new_empty(batch, self.config.kv_heads, tokens, self.shape.head_dim)
            self._new = new
        return new


def _captured_inputs(layer: LayerInput) -> tuple[Tensor | None, ...]:
    attention, ffn = layer.attention, layer.ffn
    return attention.normed, attention.base_out, ffn.normed, ffn.base_out


def _fixed_sizes(packed: PackedBackend) -> list[int]:
    """StreamCall.hidden to StreamCall.own_kv."""
    config = packed.insertion.config
    layer = next(iter(packed.inserted.values()))
    attention, ffn = layer.attention, layer.ffn
    return [
        config.hidden,
        attention.query.h.in_features if config.heads else 0,
        attention.out.h.in_features,
        ffn.up.h.in_features if config.ffn else 0,
        ffn.down.h.in_features,
        config.heads,
        config.kv_heads,
        packed.made_of[1].head_dim,
        config.ffn,
        int(config.kv == "own"),
    ]
