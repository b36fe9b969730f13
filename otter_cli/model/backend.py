"""The seam between the inserted stream and its fast execution.

`stream.py` defines what a stream computes. A StreamBackend computes the same for several layers at
once, faster, or declines. Backends live in accel/, above this package; they are imported by their
dotted name when a base is loaded, so that no import points down."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from torch import Tensor

from otter_cli.families.shape import BaseShape
from otter_cli.model.forward_context import PendingLayer

if TYPE_CHECKING:
    from otter_cli.model.insertion import Insertion


# The module and the class of the backend for a few tokens on a CPU.
_CPU_BACKEND = "otter_cli.accel.native_stream", "NativeStream"


class StreamBackend(Protocol):
    """Runs layers of one insertion's stream, where it can."""

    def __call__(
        self, z: Tensor, pending: Sequence[PendingLayer]
    ) -> tuple[Tensor, Tensor | None] | None:
        """The stream after the pending layers [batch, tokens, D], and its final norm v after the
        last layer of all, else None. Returns None where the backend does not support the call; then
        nothing has changed, and the reference runs."""


def stream_backend(
    insertion: Insertion, shape: BaseShape, depth: int, number: int
) -> StreamBackend:
    """The CPU backend of one insertion: the `number`-th, counted from 1, on a base of `depth`
    layers."""
    module, name = _CPU_BACKEND
    return cast(
        StreamBackend, getattr(import_module(module), name)(insertion, shape, depth, number)
    )
