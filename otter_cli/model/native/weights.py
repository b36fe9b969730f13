"""Where the weights of an insertion lie in memory, as long as they lie there."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter, is_
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from otter_cli.model.joint import Joint
from otter_cli.model.native.numbers import table

if TYPE_CHECKING:
    from otter_cli.model.stream import InsertedLayer, Insertion


class Weights:
    """Addresses by layer, in the order of stream.cpp, and those of the last norm."""

    def __init__(self, insertion: Insertion) -> None:
        self.layered, self.norm = insertion.layered, insertion.norm
        self._table: Any = None
        self._known: Any = None

    def __call__(self) -> Any | None:
        """None where they are not rows of numbers in single precision."""
        if self._table is None or not self._held():
            with torch.inference_mode(False), torch.no_grad():
                addresses = self._addresses()
                self._table = None if addresses is None else table(addresses)
        return self._table

    def _held(self) -> bool:
        """Whether the parameters are those that were."""
        owners, names, parameters, joints, packed = self._known
        return all(map(is_, map(dict.get, owners, names), parameters)) and all(
            map(is_, map(attrgetter("packed"), joints), packed)
        )

    def _addresses(self) -> list[int] | None:
        # Packed for all layers at once, as torch's operations have them: one storage for both.
        for product in self.layered.products:
            if product.joints:
                product.pack()
        layers = self.layered.layers
        joints = [joint for layer in layers for joint in layer.joints if joint is not None]
        owned = [
            (owner._parameters, name, parameter)
            for layer in layers
            for owner in layer.modules()
            for name, parameter in owner.named_parameters(recurse=False)
        ]
        owned += [(self.norm._parameters, name, one) for name, one in self.norm.named_parameters()]
        owners, names, parameters = zip(*owned, strict=True)
        self._known = owners, names, parameters, joints, [joint.packed for joint in joints]
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
