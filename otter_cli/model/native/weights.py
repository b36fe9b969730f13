"""Where the weights of an insertion lie in memory, as long as they lie there."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from otter_cli.model.joint import Joint
from otter_cli.model.native.form import WEIGHTS_OF_LAYER
from otter_cli.model.native.numbers import at
from otter_cli.model.watched import watch

if TYPE_CHECKING:
    from otter_cli.model.stream import InsertedLayer, Insertion


class Weights:
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
        return at(self._table, layer * WEIGHTS_OF_LAYER)

    def _forget(self) -> None:
        self._table = None

    def _addresses(self) -> list[int] | None:
        # Packed for all layers at once, as torch's operations have them: one storage for both.
        for product in self.layered.products:
            if product.joints:
                product.pack()
        layers = self.layered.layers
        for part in (*layers, self.norm):
            watch(part, self._forget)
        for joint in (joint for layer in layers for joint in layer.joints if joint is not None):
            joint.forgotten = self._forget
        tensors = [tensor for layer in layers for tensor in _of(layer)]
        tensors += self.norm.weight, self.norm.bias
        given = [tensor for tensor in tensors if tensor is not None]
        if not all(one.dtype == torch.float32 and one.is_contiguous() for one in given):
            return None
        # Whoever gives a parameter other data takes its storage from under the addresses.
        self._alive = [tensor.detach() for tensor in given]
        return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


def _of(layer: InsertedLayer) -> Iterator[Tensor | None]:
    attention, ffn = layer.attention, layer.ffn
    yield from _norm(attention)
    yield from _product(attention._inputs)
    for norm in ("query_norm", "key_norm"):
        found = getattr(attention, norm, None)
        yield None if found is None else found.weight
    yield from _product(attention._out)
    yield from _norm(ffn)
    yield from _product(ffn._inputs)
    yield from _product(ffn._down)


def _norm(branch: Any) -> tuple[Tensor | None, Tensor | None]:
    return (branch.norm.weight, branch.norm.bias) if branch.thin else (None, None)


def _product(joint: Joint | None) -> tuple[Tensor | None, ...]:
    """W^h and W^z [outputs, inputs], and b."""
    if joint is None:
        return None, None, None
    of_x, of_u, bias = joint.weights()
    return of_x.t(), None if of_u is None else of_u.t(), bias
