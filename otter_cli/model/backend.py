"""StreamBackend: the seam between the stream's formulas and their execution.

stream.py defines what a stream computes. TorchBackend executes it layer by layer on plain linears:
the reference. The faster backends live in accel/, which imports this package. They are imported by
the name of their package when a graft is made, so that no import points from model/ to accel/.
This is the only import by name in otter; import-linter does not see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any, Protocol

from torch import Tensor

from otter_cli.families.shape import BaseShape
from otter_cli.model.activations import LayerInput
from otter_cli.model.cache import update_inserted_layer
from otter_cli.model.forward_context import ForwardContext
from otter_cli.model.recompute import run_recomputed
from otter_cli.model.stream import Insertion, LayerProducts, PlainProduct, Product

_FAST_BACKENDS = "otter_cli.accel"


class StreamBackend(Protocol):
    """Runs consecutive layers of one insertion's stream, where it can."""

    def run(
        self, z: Tensor, layers: Sequence[LayerInput], context: ForwardContext
    ) -> tuple[Tensor, Tensor | None] | None:
        """z [batch, tokens, D] after the layers, and v = N(z), which a backend may compute with the
        last layer of all. Returns None where the backend does not support the call; nothing has
        changed then."""


class TorchBackend:
    """The reference: the formulas of stream.py as they stand, with torch's operations. It supports
    every call."""

    product_kind: Callable[..., Product] = PlainProduct

    def __init__(self, insertion: Insertion, shape: BaseShape, depth: int, number: int) -> None:
        """`number`: of the insertion, from 1, on a base of `depth` layers."""
        self.insertion = insertion
        self.made_of = insertion, shape, depth, number
        self.inserted: dict[int, Any] = {
            index: insertion.layers[str(index)] for index in sorted(insertion.config.layers)
        }
        self.layer_products = {
            index: LayerProducts.of(layer, self.product_kind)
            for index, layer in self.inserted.items()
        }
        self._update_cache = {
            index: partial(update_inserted_layer, at=number * depth + index, depth=depth)
            for index in self.inserted
        }

    def __reduce__(self) -> Any:
        # Packed weights and addresses belong to the insertion that they were made of.
        return type(self), self.made_of

    def run(
        self, z: Tensor, layers: Sequence[LayerInput], context: ForwardContext
    ) -> tuple[Tensor, Tensor | None] | None:
        products = self.products(layers, context)
        for layer, layer_products in zip(layers, products, strict=True):
            site, rotations = layer.site, context.rotations
            rotate = partial(
                rotations.rotate,
                apply=site.apply_rotary,
                width=site.rotary_width,
                embeddings=layer.attention.embeddings,
            )
            inserted = self.inserted[site.index]
            arguments = (
                rotate,
                self._update_cache[site.index],
                layer_products,
                context.selected if site.is_last else None,
            )
            if context.recompute and layer.attention.cache is None:
                own_keys = self.insertion.config.kv == "own"
                z = run_recomputed(inserted, z, layer, own_keys, *arguments)
            else:
                z = inserted(z, layer.attention, layer.ffn, *arguments)
        return z, None

    def products(
        self, layers: Sequence[LayerInput], context: ForwardContext
    ) -> Sequence[LayerProducts]:
        """The products of each layer."""
        return [self.layer_products[layer.site.index] for layer in layers]


def fast_backends(
    insertion: Insertion, shape: BaseShape, depth: int, number: int
) -> list[StreamBackend]:
    """The backends of accel/ for one insertion, in the order in which they are asked. The last one
    supports every call."""
    backends: list[StreamBackend] = import_module(_FAST_BACKENDS).stream_backends(
        insertion, shape, depth, number
    )
    return backends
