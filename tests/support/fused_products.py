"""Inputs and outputs of fused products of the stream, whose parts are not called one by one."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

from torch import Tensor

from otter_cli.model.fused_linear import DualInputLinear, FusedLinear, flatten_tokens


@dataclass
class Product:
    """Rows of all positions, [n, ...]. `out` includes the tensor to which the product was added."""

    x: Tensor
    u: Tensor | None
    out: Tensor


@contextmanager
def products(*parts: DualInputLinear) -> Iterator[list[Product]]:
    """Every product that includes one of `parts`, in order."""
    seen: list[Product] = []
    call, add = FusedLinear.__call__, FusedLinear.add

    def watch(joint: FusedLinear, x: Tensor, u: Tensor | None, out: Tensor) -> Tensor:
        if any(part is own for part in parts for own in joint.parts):
            seen.append(Product(flatten_tokens(x), u, out))
        return out

    def watched_call(
        joint: FusedLinear, x: Tensor, u: Tensor | None, *made: Tensor | None
    ) -> Tensor:
        return watch(joint, x, u, call(joint, x, u, *made))

    def watched_add(
        joint: FusedLinear, z: Tensor, x: Tensor, u: Tensor | None, *made: Tensor | None
    ) -> Tensor:
        return watch(joint, x, u, add(joint, z, x, u, *made))

    with (
        patch.object(FusedLinear, "__call__", watched_call),
        patch.object(FusedLinear, "add", watched_add),
    ):
        yield seen
