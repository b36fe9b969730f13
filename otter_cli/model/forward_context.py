"""The state of one forward of the base that carries inserted streams.

A ForwardContext holds z of each insertion, what the two mechanisms of capture.py and
attention_hook.py have captured, and the final states y and v. One context variable says which
context is active, another whether the running operation belongs to an insertion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from otter_cli.model.activations import (
    AttentionActivations,
    BranchActivations,
    LayerInput,
    SelectedPositions,
)
from otter_cli.model.rotary import Rotations


class StreamRunner(Protocol):
    """What a forward needs of the BaseCapture that it belongs to."""

    captured_attentions: set[nn.Module]

    def run_layers(self, context: ForwardContext, layers: Sequence[LayerInput]) -> None:
        """Runs the layers of all streams, in order."""


# A handler, and what it gets besides the context.
Captured = tuple[Callable[..., None], Any, Any]


@dataclass(slots=True)
class ForwardContext:
    """One forward of the base with its inserted streams."""

    capture: StreamRunner
    grad: bool  # whether the streams build a graph
    recompute: bool = False  # whether its layers keep their inputs alone (`recompute.py`)
    # z of each insertion, before the pending layers.
    z: dict[str, Tensor] = field(default_factory=dict)
    pending: list[LayerInput] = field(default_factory=list)
    run_after_base: bool = False  # all layers of a stream run together, behind the base's last
    use_native: bool = False  # few enough tokens for native code
    run_on_request: bool = False  # not in this forward, but when LazyStream runs them
    selected: SelectedPositions | None = None  # the positions that are read, where they are few
    captured: list[Captured] = field(default_factory=list)  # and not processed yet
    # Of the layer that is processed now.
    attention: AttentionActivations | None = None
    ffn: BranchActivations | None = None
    residual: Tensor | None = None
    rotations: Rotations = field(default_factory=Rotations)
    converted_masks: dict[Any, Any] = field(default_factory=dict)  # of `AttentionCall`
    # y [batch, tokens, d] and v [batch, tokens, D]; of N selected positions [N, d] and [N, D].
    base_state: Tensor | None = None
    inserted_state: dict[str, Tensor] = field(default_factory=dict)

    @property
    def streams(self) -> dict[str, Tensor]:
        """z of every insertion after the layers that the base has run, [batch, tokens, D]. After
        the last layer [N, D], where N positions are selected."""
        self.process_captured()
        if self.pending:
            run_inserted(_run_pending, self)
        return self.z

    def process_captured(self) -> None:
        """Sorts what was captured by layer and branch."""
        captured, self.captured = self.captured, []
        for handler, inputs, kwargs in captured:
            handler(self, inputs, kwargs)

    def add_layer(self, layer: LayerInput) -> None:
        """A layer of which everything that the streams read is captured."""
        self.pending.append(layer)
        if not self.run_after_base:
            run_inserted(_run_pending, self)


def _run_pending(context: ForwardContext) -> None:
    pending, context.pending = context.pending, []
    context.capture.run_layers(context, pending)


ACTIVE_CONTEXT: ContextVar[ForwardContext | None] = ContextVar("otter_context", default=None)
INSIDE_INSERTION: ContextVar[bool] = ContextVar("otter_inside", default=False)


def inside_insertion() -> bool:
    """Whether the running operation belongs to an insertion. A trace asks this."""
    return INSIDE_INSERTION.get()


def run_inserted(work: Callable[..., None], context: ForwardContext, *arguments: Any) -> None:
    """Calls `work(context, ...)`, whose operations belong to an insertion."""
    token = INSIDE_INSERTION.set(True)
    try:
        if torch.is_grad_enabled() == context.grad:
            work(context, *arguments)
        else:
            with torch.set_grad_enabled(context.grad):
                work(context, *arguments)
    finally:
        INSIDE_INSERTION.reset(token)
