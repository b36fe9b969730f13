"""NativeStream: the layers of one insertion by one call of native code.

It implements `model.backend.StreamBackend`. The addresses of the weights are kept as long as no
parameter is replaced; those of activations, keys and masks are collected for each call."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._C._autograd import _profiler_enabled as _profiled
from torch.profiler import record_function
from transformers.cache_utils import Cache

from otter_cli.accel.native_library import (
    MASK_ADDITIVE,
    MASK_BOOLEAN,
    MASK_CAUSAL,
    MASK_NONE,
    POINTERS_OF_HEADS,
    WEIGHTS_PER_LAYER,
    StreamCall,
    TensorAddresses,
    array_address,
    load_native,
)
from otter_cli.accel.native_support import NativeSupport
from otter_cli.families.shape import BaseShape
from otter_cli.model.activations import AttentionCall, BranchActivations
from otter_cli.model.cache import cache_addresses, reserve_inserted_slots
from otter_cli.model.forward_context import PendingLayer
from otter_cli.model.fused_linear import FusedLinear, watch_parameters

if TYPE_CHECKING:
    from otter_cli.model.insertion import Insertion
    from otter_cli.model.stream import InsertedLayer


class WeightAddresses:
    """Addresses by layer, in the order of stream.cpp, and those of the last norm."""

    def __init__(self, insertion: Insertion) -> None:
        self.layered, self.norm = insertion.layered, insertion.norm
        self._table: array[int] | None = None

    def there(self) -> bool:
        """Whether they are rows of numbers in single precision, whose addresses are known now."""
        if self._table is None:
            with torch.inference_mode(False), torch.no_grad():
                addresses = self._addresses()
                self._table = None if addresses is None else array("q", addresses)
        return self._table is not None

    def at(self, layer: int) -> ctypes.c_void_p:
        """Where the addresses of a layer lie; those of further ones, and of the norm, follow."""
        assert self._table is not None
        return array_address(self._table, layer * WEIGHTS_PER_LAYER)

    def _forget(self) -> None:
        self._table = None

    def _addresses(self) -> list[int] | None:
        # Packed for all layers at once, as torch's operations have them: one storage for both.
        for product in self.layered.products:
            if product.joints:
                product.pack()
        layers = self.layered.layers
        for part in (*layers, self.norm):
            watch_parameters(part, self._forget)
        for joint in (joint for layer in layers for joint in layer.joints if joint is not None):
            joint.forgotten = self._forget
        tensors = [tensor for layer in layers for tensor in _layer_tensors(layer)]
        tensors += self.norm.weight, self.norm.bias
        given = [tensor for tensor in tensors if tensor is not None]
        if not all(one.dtype == torch.float32 and one.is_contiguous() for one in given):
            return None
        # Whoever gives a parameter other data takes its storage from under the addresses.
        self._alive = [tensor.detach() for tensor in given]
        return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


def _layer_tensors(layer: InsertedLayer) -> Iterator[Tensor | None]:
    attention, ffn = layer.attention, layer.ffn
    yield from _norm_tensors(attention)
    yield from _product_tensors(attention._inputs)
    for norm in ("query_norm", "key_norm"):
        found = getattr(attention, norm, None)
        yield None if found is None else found.weight
    yield from _product_tensors(attention._out)
    yield from _norm_tensors(ffn)
    yield from _product_tensors(ffn._inputs)
    yield from _product_tensors(ffn._down)


def _norm_tensors(branch: Any) -> tuple[Tensor | None, Tensor | None]:
    return (branch.norm.weight, branch.norm.bias) if branch.thin else (None, None)


def _product_tensors(joint: FusedLinear | None) -> tuple[Tensor | None, ...]:
    """W^h and W^z [outputs, inputs], and b."""
    if joint is None:
        return None, None, None
    of_x, of_u, bias = joint.weights()
    return of_x.t(), None if of_u is None else of_u.t(), bias


class NativeStream:
    """Runs the layers of an insertion, where it can; torch's operations are the reference."""

    def __init__(self, insertion: Insertion, shape: BaseShape, depth: int, number: int) -> None:
        self._made_of = insertion, shape, depth, number
        self.config, self.shape, self.depth, self.number = insertion.config, shape, depth, number
        self.fits, self.weights = NativeSupport(insertion, shape), WeightAddresses(insertion)
        self._fixed = _fixed_sizes(insertion, shape)
        self._order = {index: place for place, index in enumerate(sorted(self.config.layers))}
        self._new: Tensor | None = None

    def __reduce__(self) -> Any:
        # A copy's weights lie elsewhere.
        return NativeStream, self._made_of

    def __call__(
        self, z: Tensor, pending: Sequence[PendingLayer]
    ) -> tuple[Tensor, Tensor | None] | None:
        """z [batch, tokens, D] after some of the layers, one after the other, and v, its norm after
        the last of all. None: nothing was done."""
        if not self.fits(z, pending):
            return None
        native = load_native()
        if native is None or not self.weights.there():
            return None
        form, numbers, held = self._given(z, pending)
        first, form.layers = self._order[pending[0][0].index], len(pending)
        last = first + len(pending) == len(self._order)
        z = z.clone()
        v = torch.empty_like(z) if last else None
        to = ctypes.c_void_p(z.data_ptr()), ctypes.c_void_p(0 if v is None else v.data_ptr())
        with record_function("otter::stream") if _profiled() else nullcontext():
            native.otter_stream(
                ctypes.byref(form), self.weights.at(first), array_address(numbers), *to
            )
        del held  # what was converted lives until here
        return z, v

    def _given(
        self, z: Tensor, pending: Sequence[PendingLayer]
    ) -> tuple[StreamCall, array[int], list[Tensor]]:
        """The form of the call, and by layer the addresses of what it reads and writes."""
        form, memory = StreamCall.from_buffer_copy(self._fixed), TensorAddresses()
        form.batch, form.tokens = z.shape[:2]
        numbers = array("q")
        if not self.config.heads:
            for _, attention, ffn in pending:
                numbers.extend(map(memory.at, _captured_inputs(attention, ffn)))
                numbers.extend([0] * POINTERS_OF_HEADS)
            return form, numbers, memory.held
        cache, new = pending[0][1].cache, self._new_heads(z)
        mask = self._mask(form, pending[0][1].call, memory)
        cos_sin = self._cos_sin(form, pending, memory)
        for hooks, attention, ffn in pending:
            held, form.slots = self._keys(hooks.index, attention.call, cache, new, memory)
            turn = cos_sin if hooks.apply_rotary is not None else (0, 0)
            numbers.extend((*map(memory.at, _captured_inputs(attention, ffn)), *held, *turn, mask))
        form.first_slot = form.slots - form.tokens
        return form, numbers, memory.held

    def _new_heads(self, z: Tensor) -> Tensor:
        """Shaped as one layer's new keys, or values; its numbers are nobody's."""
        new = self._new
        if new is None or new.shape[0] != z.shape[0] or new.shape[2] != z.shape[1]:
            form = z.shape[0], self.config.kv_heads, z.shape[1], self.shape.head_dim
            new = self._new = z.new_empty(form)
        return new

    def _keys(
        self,
        index: int,
        call: AttentionCall | None,
        cache: Cache | None,
        new: Tensor,
        memory: TensorAddresses,
    ) -> tuple[tuple[int, ...], int]:
        """Where keys and values lie, and the slots of them; of one's own, with those of the new
        tokens, not yet written."""
        assert call is not None
        if self.config.kv == "base":
            read = slice(self.config.kv_start, self.config.kv_start + self.config.kv_heads)
            return cache_addresses(call.key[:, read], call.value[:, read]), call.key.shape[2]
        if cache is None:
            own = torch.empty_like(new), torch.empty_like(new)
            memory.held += own
            return cache_addresses(*own), new.shape[2]
        layer, slots = reserve_inserted_slots(
            cache, self.number * self.depth + index, depth=self.depth, new=new
        )
        return layer.places, slots

    def _cos_sin(
        self, form: StreamCall, pending: Sequence[PendingLayer], memory: TensorAddresses
    ) -> tuple[int, int]:
        """Addresses of cosines and sines [batch or 1, tokens, head_dim]."""
        for hooks, attention, _ in pending:
            if hooks.apply_rotary is not None and attention.embeddings is not None:
                cos, sin = attention.embeddings
                form.turn_of_batch = 0 if len(cos) == 1 else form.tokens * form.head_dim
                return memory.at(cos), memory.at(sin)
        return 0, 0

    def _mask(self, form: StreamCall, call: AttentionCall | None, memory: TensorAddresses) -> int:
        assert call is not None
        form.scale = call.arguments.get("scaling") or form.head_dim**-0.5
        mask = call.mask
        if mask is None:
            form.mask = MASK_NONE if form.tokens == 1 else MASK_CAUSAL
            return 0
        allowed = mask.dtype == torch.bool
        form.mask = MASK_BOOLEAN if allowed else MASK_ADDITIVE
        mask = mask if allowed or mask.dtype == torch.float32 else mask.float()
        mask = mask if mask.stride(-1) == 1 else mask.contiguous()
        form.mask_of_batch = 0 if len(mask) == 1 else mask.stride(0)
        form.mask_of_token = 0 if mask.shape[2] == 1 else mask.stride(2)
        memory.held.append(mask)
        return mask.data_ptr()


def _fixed_sizes(insertion: Insertion, shape: BaseShape) -> StreamCall:
    config, first = insertion.config, insertion.layered.layers[0]
    attention, ffn = first.attention, first.ffn
    return StreamCall(
        hidden=config.hidden,
        in_heads=attention.query.h.in_features if config.heads else 0,
        in_out=attention.out.h.in_features,
        in_units=ffn.up.h.in_features if config.ffn else 0,
        in_down=ffn.down.h.in_features,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=shape.head_dim,
        units=config.ffn,
        own_kv=int(config.kv == "own"),
        eps=shape.norm_eps,
    )


def _captured_inputs(
    attention: BranchActivations, ffn: BranchActivations
) -> tuple[Tensor | None, ...]:
    return attention.normed, attention.part, ffn.normed, ffn.part
