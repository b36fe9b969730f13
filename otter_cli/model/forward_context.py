"""The state of one forward of the base that carries inserted streams.

ForwardContext holds z of each insertion, what the hooks have captured and not yet processed, and
the final states y and v. A context variable says which context is active, and another whether the
running operation belongs to the insertion. The wrappers that capture are here too: RecordingHook
and CapturingForward do nothing unless their own base is being recorded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from otter_cli.model.activations import AttentionActivations, BranchActivations
from otter_cli.model.fused_linear import BaseProjections
from otter_cli.model.rotary import Rotations

if TYPE_CHECKING:
    from otter_cli.model.activations import SelectedPositions


# By insertion and layer.
ProjectionsByLayer = Mapping[tuple[str, int], BaseProjections]


class CapturedLayer(Protocol):
    """A decoder layer of the base with hooks on it, and the streams' step beside it."""

    index: int
    apply_rotary: Callable[..., Any] | None
    rotary_width: int

    def step(
        self,
        record: ForwardContext,
        attention: AttentionActivations,
        ffn: BranchActivations,
        names: Collection[str],
        made: ProjectionsByLayer,
    ) -> None:
        """Runs the layer of the named streams."""


class StreamRunner(Protocol):
    """The hooks of one base, as a forward needs them."""

    attention: set[nn.Module]

    def not_native(self, record: ForwardContext, pending: Sequence[PendingLayer]) -> list[str]:
        """Runs native code where it can. Returns the names of the other streams."""

    def made_at_once(
        self, pending: Sequence[PendingLayer], names: Collection[str]
    ) -> ProjectionsByLayer:
        """The products of the base's activations, for all pending layers."""


# A layer, and the activations that its hooks captured.
PendingLayer = tuple[CapturedLayer, AttentionActivations, BranchActivations]
# A handler, and what it is to be given besides the record.
Captured = tuple[Callable[..., None], Any, Any]


@dataclass(slots=True)
class ForwardContext:
    """One forward of the base with its inserted streams; `grad`: whether they build a graph."""

    taps: StreamRunner
    grad: bool
    computed: dict[str, Tensor] = field(default_factory=dict)  # z, but for what is pending
    pending: list[PendingLayer] = field(default_factory=list)
    lazy: bool = False  # layers of the streams wait until someone reads them
    native: bool = False  # native code takes the streams through them, where it can
    deferred: bool = False  # who reads them is no one in this forward
    chosen: SelectedPositions | None = None  # the positions read in the end, where they are few
    seen: list[Captured] = field(default_factory=list)  # by the taps, and not settled yet
    # Of the layer that is settled now.
    attention: AttentionActivations | None = None
    ffn: BranchActivations | None = None
    residual: Tensor | None = None
    rotations: Rotations = field(default_factory=Rotations)
    # y [batch, tokens, d] and v [batch, tokens, D]; of N chosen positions [N, d] and [N, D].
    base_state: Tensor | None = None
    inserted_state: dict[str, Tensor] = field(default_factory=dict)

    @property
    def streams(self) -> dict[str, Tensor]:
        """z of every insertion after the layers that the base has run, [batch, tokens, D]; after
        the last one [N, D] where N positions are chosen."""
        self.settle()
        if self.pending:
            run_inserted(_run_pending_layers, self)
        return self.computed

    def settle(self) -> None:
        """Sorts what the taps have seen by layer and branch."""
        seen, self.seen = self.seen, []
        for handler, given, named in seen:
            handler(self, given, named)

    def take(
        self, hooks: CapturedLayer, attention: AttentionActivations, ffn: BranchActivations
    ) -> None:
        """A layer of the streams whose base has handed over all that it reads."""
        self.pending.append((hooks, attention, ffn))
        if not self.lazy:
            run_inserted(_run_pending_layers, self)


def _run_pending_layers(record: ForwardContext) -> None:
    pending, record.pending = record.pending, []
    taps = record.taps
    left = taps.not_native(record, pending) if record.native else list(record.computed)
    if not left:
        return
    made = taps.made_at_once(pending, left) if record.lazy else {}
    for hooks, attention, ffn in pending:
        hooks.step(record, attention, ffn, left, made)


ACTIVE_CONTEXT: ContextVar[ForwardContext | None] = ContextVar("otter_record", default=None)
INSIDE_INSERTION: ContextVar[bool] = ContextVar("otter_inside", default=False)


def inside_insertion() -> bool:
    """Whether the operation that runs now is the insertion's: what a trace needs to tell the two
    apart."""
    return INSIDE_INSERTION.get()


class RecordingHook:
    """Calls `handler(record, module, ...)` while `taps` are recording, and returns None, so that
    torch passes the base's own tensors on. The handler remembers and computes nothing: what does
    goes through `compute`."""

    __slots__ = ("handler", "taps")

    def __init__(self, taps: StreamRunner, handler: Callable[..., None]) -> None:
        self.taps, self.handler = taps, handler

    def __call__(self, module: nn.Module, *arguments: Any) -> None:
        record = ACTIVE_CONTEXT.get()
        if record is not None and record.taps is self.taps:
            self.handler(record, module, *arguments)


class CapturingForward:
    """A module's forward, in whose place it is put: while `taps` are recording, what goes into it
    (`after`: what comes out) is kept for `handler(record, given, named)`.

    Nothing else is done among the base's layers, where whatever runs is cold. `last`: with it a
    layer has handed over all."""

    __slots__ = ("after", "forward", "handler", "last", "taps")

    def __init__(
        self,
        taps: StreamRunner,
        module: nn.Module,
        handler: Callable[..., None],
        *,
        after: bool = False,
        last: bool = False,
    ) -> None:
        self.taps, self.forward, self.handler = taps, module.forward, handler
        self.after, self.last = after, last
        # As an attribute it would be found before the class's own forward, too.
        module.__dict__["forward"] = self

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        record = ACTIVE_CONTEXT.get()
        if record is None or record.taps is not self.taps:
            return self.forward(*inputs, **named)
        if self.after:
            output = self.forward(*inputs, **named)
            record.seen.append((self.handler, output, None))
            if self.last and not record.lazy:
                record.settle()
            return output
        # No call of ours but this one, and none after the module's own.
        record.seen.append((self.handler, inputs, named))
        if self.last and not record.lazy:
            record.settle()
        return self.forward(*inputs, **named)


def run_inserted(work: Callable[..., None], record: ForwardContext, *arguments: Any) -> None:
    """`work(record, ...)`, whose operations are the insertion's."""
    token = INSIDE_INSERTION.set(True)
    try:
        if torch.is_grad_enabled() == record.grad:
            work(record, *arguments)
        else:
            with torch.set_grad_enabled(record.grad):
                work(record, *arguments)
    finally:
        INSIDE_INSERTION.reset(token)


class SelectiveForward:
    """The forward of a module in the base's last layer that treats each position by itself: where
    some are chosen, it runs at these alone, and nobody reads the zeros at the others."""

    def __init__(self, taps: StreamRunner, module: nn.Module) -> None:
        self.taps, self.forward = taps, module.forward
        module.__dict__["forward"] = self

    def __call__(self, hidden: Tensor, *more: Any, **named: Any) -> Any:
        record = ACTIVE_CONTEXT.get()
        if record is None or record.taps is not self.taps or record.chosen is None:
            return self.forward(hidden, *more, **named)
        chosen = record.chosen
        found = self.forward(chosen.of(hidden)[None], *more, **named)
        if isinstance(found, tuple):  # experts give their router's scores too
            return chosen.spread(found[0], hidden), *found[1:]
        return chosen.spread(found, hidden)
