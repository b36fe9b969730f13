"""What a product of the stream is given, and what it gives: its linears are not called."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from torch import Tensor

from otter_cli.accel.packed import FusedLinear, PreparedProduct
from otter_cli.model.activations import flatten_tokens
from otter_cli.model.stream import DualInputLinear


@dataclass
class Product:
    """[n, ...]: all positions. `out`: with `add_to`, what it was added to included."""

    x: Tensor
    u: Tensor | None
    out: Tensor


@contextmanager
def products(*linears: DualInputLinear) -> Iterator[list[Product]]:
    """Every product in which one of `linears` has a share, in order."""
    seen: list[Product] = []

    def watched(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(product: Any, *inputs: Tensor) -> Tensor:
            out = call(product, *inputs)
            if any(linear is own for linear in linears for own in product.linears):
                *_, x, u = inputs
                seen.append(Product(flatten_tokens(x), u, out))
            return out

        return run

    with ExitStack() as stack:
        for kind in (FusedLinear, PreparedProduct):
            for name in ("__call__", "add_to"):
                stack.enter_context(patch.object(kind, name, watched(getattr(kind, name))))
        yield seen
