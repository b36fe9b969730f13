"""One insertion's stream by one call of native code: what it is given."""

from __future__ import annotations

import ctypes
from array import array
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
from otter_cli.model.growing_cache import places
from otter_cli.model.native.fits import Fits
from otter_cli.model.native.form import ADDED, ALLOWED, CAUSAL, EVERYTHING, TAPS_OF_HEADS, Form
from otter_cli.model.native.library import library
from otter_cli.model.native.numbers import Memory, at
from otter_cli.model.native.weights import Weights
from otter_cli.model.record import Pending

if TYPE_CHECKING:
    from otter_cli.model.stream import Insertion


class NativeStream:
    """Runs the layers of an insertion, where it can; torch's operations are the reference."""

    def __init__(self, insertion: Insertion, shape: BaseShape, depth: int, number: int) -> None:
        self._made_of = insertion, shape, depth, number
        self.config, self.shape, self.depth, self.number = insertion.config, shape, depth, number
        self.fits, self.weights = Fits(insertion, shape), Weights(insertion)
        self._fixed = _sizes(insertion, shape)
        self._order = {index: place for place, index in enumerate(sorted(self.config.layers))}
        self._new: Tensor | None = None

    def __reduce__(self) -> Any:
        # A copy's weights lie elsewhere.
        return NativeStream, self._made_of

    def __call__(
        self, z: Tensor, pending: Sequence[Pending]
    ) -> tuple[Tensor, Tensor | None] | None:
        """z [batch, tokens, D] after some of the layers, one after the other, and v, its norm after
        the last of all. None: nothing was done."""
        if not self.fits(z, pending):
            return None
        native = library()
        if native is None or not self.weights.there():
            return None
        form, numbers, held = self._given(z, pending)
        first, form.layers = self._order[pending[0][0].index], len(pending)
        last = first + len(pending) == len(self._order)
        z = z.clone()
        v = torch.empty_like(z) if last else None
        to = ctypes.c_void_p(z.data_ptr()), ctypes.c_void_p(0 if v is None else v.data_ptr())
        with record_function("otter::stream") if _profiled() else nullcontext():
            native.otter_stream(ctypes.byref(form), self.weights.at(first), at(numbers), *to)
        del held  # what was converted lives until here
        return z, v

    def _given(
        self, z: Tensor, pending: Sequence[Pending]
    ) -> tuple[Form, array[int], list[Tensor]]:
        """The form of the call, and by layer the addresses of what it reads and writes."""
        form, memory = Form.from_buffer_copy(self._fixed), Memory()
        form.batch, form.tokens = z.shape[:2]
        numbers = array("q")
        if not self.config.heads:
            for _, attention, ffn in pending:
                numbers.extend(map(memory.at, _read(attention, ffn)))
                numbers.extend([0] * TAPS_OF_HEADS)
            return form, numbers, memory.held
        cache, new = pending[0][1].cache, self._new_heads(z)
        mask = self._mask(form, pending[0][1].call, memory)
        cos_sin = self._cos_sin(form, pending, memory)
        for hooks, attention, ffn in pending:
            held, form.slots = self._keys(hooks.index, attention.call, cache, new, memory)
            turn = cos_sin if hooks.apply_rotary is not None else (0, 0)
            numbers.extend((*map(memory.at, _read(attention, ffn)), *held, *turn, mask))
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
        memory: Memory,
    ) -> tuple[tuple[int, ...], int]:
        """Where keys and values lie, and the slots of them; of one's own, with those of the new
        tokens, not yet written."""
        assert call is not None
        if self.config.kv == "base":
            read = slice(self.config.kv_start, self.config.kv_start + self.config.kv_heads)
            return places(call.key[:, read], call.value[:, read]), call.key.shape[2]
        if cache is None:
            own = torch.empty_like(new), torch.empty_like(new)
            memory.held += own
            return places(*own), new.shape[2]
        layer, slots = reserve(cache, self.number * self.depth + index, depth=self.depth, new=new)
        return layer.places, slots

    def _cos_sin(self, form: Form, pending: Sequence[Pending], memory: Memory) -> tuple[int, int]:
        """Addresses of cosines and sines [batch or 1, tokens, head_dim]."""
        for hooks, attention, _ in pending:
            if hooks.apply_rotary is not None and attention.embeddings is not None:
                cos, sin = attention.embeddings
                form.turn_of_batch = 0 if len(cos) == 1 else form.tokens * form.head_dim
                return memory.at(cos), memory.at(sin)
        return 0, 0

    def _mask(self, form: Form, call: AttentionCall | None, memory: Memory) -> int:
        assert call is not None
        form.scale = call.arguments.get("scaling") or form.head_dim**-0.5
        mask = call.mask
        if mask is None:
            form.mask = EVERYTHING if form.tokens == 1 else CAUSAL
            return 0
        allowed = mask.dtype == torch.bool
        form.mask = ALLOWED if allowed else ADDED
        mask = mask if allowed or mask.dtype == torch.float32 else mask.float()
        mask = mask if mask.stride(-1) == 1 else mask.contiguous()
        form.mask_of_batch = 0 if len(mask) == 1 else mask.stride(0)
        form.mask_of_token = 0 if mask.shape[2] == 1 else mask.stride(2)
        memory.held.append(mask)
        return mask.data_ptr()


def _sizes(insertion: Insertion, shape: BaseShape) -> Form:
    config, first = insertion.config, insertion.layered.layers[0]
    attention, ffn = first.attention, first.ffn
    return Form(
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
