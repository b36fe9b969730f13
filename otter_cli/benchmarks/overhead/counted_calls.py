"""Counts of a decoding step: kernel calls, rows of the product over the vocabulary, and bytes that
are copied out of the KV cache. Unlike times, they are the same on every run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.cache_utils import Cache

_aten = torch.ops.aten
# Allocate or reshape, and compute nothing. Views are left out by their schema.
_NO_KERNEL: tuple[Any, ...] = (
    _aten._unsafe_view,
    _aten._reshape_alias,
    _aten.empty,
    _aten.empty_like,
    _aten.empty_strided,
    _aten.new_empty,
    _aten.detach,
    _aten.lift_fresh,
)
# Read keys and values where they lie.
_READS_IN_PLACE = ("scaled_dot_product", "stream_layers", "bmm", "mm", "addmm")
_PRODUCTS = (_aten.mm, _aten.addmm, _aten.linear, _aten.bmm)


class CountedCalls(TorchDispatchMode):
    """Counts what runs inside. `head` is the weight of the base's output product."""

    def __init__(self, head: Tensor, *caches: Cache) -> None:
        super().__init__()
        self._head, self._caches = _storage(head), caches
        self.kernel_calls = 0
        self.vocabulary_rows = 0
        self.copied_bytes = 0  # read out of the caches and written elsewhere, or to other slots

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.is_view or func.overloadpacket in _NO_KERNEL:
            return out
        self.kernel_calls += 1
        self._count_vocabulary_rows(func, args)
        if not any(name in func.overloadpacket.__name__ for name in _READS_IN_PLACE):
            self._count_copied_bytes(func, args, out)
        return out

    def _count_vocabulary_rows(self, func: Any, args: Sequence[Any]) -> None:
        if func.overloadpacket in _PRODUCTS:
            tensors = [arg for arg in args if isinstance(arg, Tensor)]
            if any(_storage(tensor) == self._head for tensor in tensors[1:]):
                # The product's left side is the last tensor before the weight.
                self.vocabulary_rows += tensors[-2].numel() // tensors[-2].shape[-1]

    def _count_copied_bytes(self, func: Any, args: Sequence[Any], out: Any) -> None:
        cached = {_storage(tensor) for cache in self._caches for tensor in _cache_tensors(cache)}
        read = [t for t in _read_tensors(func, args) if _storage(t) in cached]
        if not read:
            return
        # A concatenation reads each of its parts; any other copy writes what it reads.
        whole = func.overloadpacket is _aten.cat
        moved = read if whole or not isinstance(out, Tensor) else [_written(func, args, out)]
        self.copied_bytes += sum(tensor.numel() * tensor.element_size() for tensor in moved)


def _read_tensors(func: Any, args: Sequence[Any]) -> Iterator[Tensor]:
    """The tensors among `args` that the operation does not only write to."""
    for argument, value in zip(func._schema.arguments, args, strict=False):
        written = argument.alias_info is not None and argument.alias_info.is_write
        if not written:
            values = value if isinstance(value, (list, tuple)) else [value]
            yield from (tensor for tensor in values if isinstance(tensor, Tensor))


def _written(func: Any, args: Sequence[Any], out: Tensor) -> Tensor:
    """What the operation wrote: of an assignment by index, the values, not the whole target."""
    return args[2] if func.overloadpacket in (_aten.index_put_, _aten.index_put) else out


def _cache_tensors(cache: Cache) -> Iterator[Tensor]:
    for layer in cache.layers:
        for name in ("key_buffer", "value_buffer", "keys", "values"):
            if isinstance(tensor := getattr(layer, name, None), Tensor):
                yield tensor


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
