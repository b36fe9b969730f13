"""One insertion's stream by one call of native code: what it is given."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._C._autograd import _profiler_enabled as _profiled
from torch.profiler import record_function
from transformers.cache_utils import Cache

from otter_cli.families import BaseShape
from otter_cli.model.branch import AttentionCall, BranchTap
from otter_cli.model.cache import reserve
from otter_cli.model.native.fits import Fits
from otter_cli.model.native.library import library
from otter_cli.model.native.numbers import Memory, table
from otter_cli.model.native.weights import Weights
from otter_cli.model.record import Pending

if TYPE_CHECKING:
    from otter_cli.model.stream import Insertion

_NUMBERS = """batch tokens layers hidden in_heads in_out in_units in_down heads kv_heads head_dim
units own_kv slots first_slot mask mask_of_batch mask_of_token turn_of_batch"""
_EVERYTHING, _CAUSAL, _ADDED, _ALLOWED = range(4)
_OF_HEADS = 11  # numbers of a layer, in stream.cpp's Taps, that heads alone need


class _Form(ctypes.Structure):
    """As in stream.cpp."""

    _fields_ = [
        *[(name, ctypes.c_int64) for name in _NUMBERS.split()],
        ("eps", ctypes.c_double),
        ("scale", ctypes.c_double),
    ]


class NativeStream:
    """Runs the layers of an insertion, where it can; torch's operations are the reference."""

    def __init__(self, insertion: Insertion, shape: BaseShape, depth: int, number: int) -> None:
        self._made_of = insertion, shape, depth, number
        self.config, self.shape, self.depth, self.number = insertion.config, shape, depth, number
        self.fits, self.weights = Fits(insertion, shape), Weights(insertion)
        self._fixed = _sizes(insertion, shape)

    def __reduce__(self) -> Any:
        # A copy's weights lie elsewhere.
        return NativeStream, self._made_of

    def __call__(self, z: Tensor, pending: Sequence[Pending]) -> Tensor | None:
        """Takes z [batch, tokens, D] through the layers, in place, and gives v, its last norm.
        None: nothing was done."""
        if not self.fits(z, pending):
            return None
        native = library()
        weights = None if native is None else self.weights()
        if native is None or weights is None:
            return None
        form, numbers, held = self._given(z, pending)
        v = torch.empty_like(z)
        with record_function("otter::stream") if _profiled() else nullcontext():
            at = ctypes.c_void_p(z.data_ptr()), ctypes.c_void_p(v.data_ptr())
            native.otter_stream(ctypes.byref(form), weights, table(numbers), *at)
        del held  # what was converted lives until here
        return v

    def _given(
        self, z: Tensor, pending: Sequence[Pending]
    ) -> tuple[_Form, list[int], list[Tensor]]:
        """The form of the call, and by layer the addresses of what it reads and writes."""
        form, memory = _Form.from_buffer_copy(self._fixed), Memory()
        form.batch, form.tokens = z.shape[:2]
        numbers: list[int] = []
        if not self.config.heads:
            for _, attention, ffn in pending:
                numbers += map(memory.at, _read(attention, ffn))
                numbers += [0] * _OF_HEADS
            return form, numbers, memory.held
        cache, new = pending[0][1].cache, self._new_heads(z)
        mask = self._mask(form, pending[0][1].call, memory)
        cos_sin = self._cos_sin(form, pending, memory)
        for hooks, attention, ffn in pending:
            key, value, form.slots = self._keys(hooks.index, attention.call, cache, new)
            memory.held += key, value
            numbers += map(memory.at, _read(attention, ffn))
            numbers += key.data_ptr(), value.data_ptr()
            numbers += cos_sin if hooks.apply_rotary is not None else (0, 0)
            numbers.append(mask)
            numbers += key.stride()[:3]
            numbers += value.stride()[:3]
        form.first_slot = form.slots - form.tokens
        return form, numbers, memory.held

    def _new_heads(self, z: Tensor) -> Tensor:
        """Room for one layer's new keys, or values."""
        return z.new_empty(z.shape[0], self.config.kv_heads, z.shape[1], self.shape.head_dim)

    def _keys(
        self, index: int, call: AttentionCall | None, cache: Cache | None, new: Tensor
    ) -> tuple[Tensor, Tensor, int]:
        """[batch, kv_heads, room, head_dim] and the slots of it; of one's own, with those of the
        new tokens, not yet written."""
        assert call is not None
        if self.config.kv == "base":
            read = slice(self.config.kv_start, self.config.kv_start + self.config.kv_heads)
            return call.key[:, read], call.value[:, read], call.key.shape[2]
        if cache is None:
            return torch.empty_like(new), torch.empty_like(new), new.shape[2]
        return reserve(cache, self.number * self.depth + index, depth=self.depth, new=new)

    def _cos_sin(self, form: _Form, pending: Sequence[Pending], memory: Memory) -> tuple[int, int]:
        """Addresses of cosines and sines [batch or 1, tokens, head_dim]."""
        for hooks, attention, _ in pending:
            if hooks.apply_rotary is not None and attention.embeddings is not None:
                cos, sin = attention.embeddings
                form.turn_of_batch = 0 if len(cos) == 1 else form.tokens * form.head_dim
                return memory.at(cos), memory.at(sin)
        return 0, 0

    def _mask(self, form: _Form, call: AttentionCall | None, memory: Memory) -> int:
        assert call is not None
        form.scale = call.arguments.get("scaling") or form.head_dim**-0.5
        mask = call.mask
        if mask is None:
            form.mask = _EVERYTHING if form.tokens == 1 else _CAUSAL
            return 0
        allowed = mask.dtype == torch.bool
        form.mask = _ALLOWED if allowed else _ADDED
        mask = mask if allowed or mask.dtype == torch.float32 else mask.float()
        mask = mask if mask.stride(-1) == 1 else mask.contiguous()
        form.mask_of_batch = 0 if len(mask) == 1 else mask.stride(0)
        form.mask_of_token = 0 if mask.shape[2] == 1 else mask.stride(2)
        memory.held.append(mask)
        return mask.data_ptr()


def _sizes(insertion: Insertion, shape: BaseShape) -> _Form:
    config, first = insertion.config, insertion.layered.layers[0]
    attention, ffn = first.attention, first.ffn
    return _Form(
        layers=len(insertion.layered.layers),
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


def _read(attention: BranchTap, ffn: BranchTap) -> tuple[Tensor | None, ...]:
    return attention.normed, attention.part, ffn.normed, ffn.part
