"""What one forward of the base carries beside it, and whether one is being carried now."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from otter_cli.model.branch import AttentionTap, BranchTap
from otter_cli.model.joint import OfBase
from otter_cli.model.rotary import Rotations

if TYPE_CHECKING:
    from otter_cli.model.chosen import Chosen

# By insertion and layer.
MadeAtOnce = Mapping[tuple[str, int], OfBase]


class LayerSite(Protocol):
    """A decoder layer of the base with hooks on it, and the streams' step beside it."""

    index: int
    apply_rotary: Callable[..., Any] | None
    rotary_width: int

    def step(
        self,
        record: Record,
        attention: AttentionTap,
        ffn: BranchTap,
        names: Collection[str],
        made: MadeAtOnce,
    ) -> None:
        """Runs the layer of the named streams."""


class StreamRunner(Protocol):
    """The hooks of one base, as a forward needs them."""

    attention: set[nn.Module]

    def not_native(self, record: Record, pending: Sequence[Pending]) -> list[str]:
        """Runs native code where it can. Returns the names of the other streams."""

    def made_at_once(self, pending: Sequence[Pending], names: Collection[str]) -> MadeAtOnce:
        """The products of the base's activations, for all pending layers."""


# A layer, and the activations that its hooks captured.
Pending = tuple[LayerSite, AttentionTap, BranchTap]
# A handler, and what it is to be given besides the record.
Seen = tuple[Callable[..., None], Any, Any]


@dataclass(slots=True)
class Record:
    """One forward of the base with its inserted streams; `grad`: whether they build a graph."""

    taps: StreamRunner
    grad: bool
    computed: dict[str, Tensor] = field(default_factory=dict)  # z, but for what is pending
    pending: list[Pending] = field(default_factory=list)
    lazy: bool = False  # layers of the streams wait until someone reads them
    native: bool = False  # native code takes the streams through them, where it can
    deferred: bool = False  # who reads them is no one in this forward
    chosen: Chosen | None = None  # the positions read in the end, where they are few
    seen: list[Seen] = field(default_factory=list)  # by the taps, and not settled yet
    # Of the layer that is settled now.
    attention: AttentionTap | None = None
    ffn: BranchTap | None = None
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
            compute(_catch_up, self)
        return self.computed

    def settle(self) -> None:
        """Sorts what the taps have seen by layer and branch."""
        seen, self.seen = self.seen, []
        for handler, given, named in seen:
            handler(self, given, named)

    def take(self, hooks: LayerSite, attention: AttentionTap, ffn: BranchTap) -> None:
        """A layer of the streams whose base has handed over all that it reads."""
        self.pending.append((hooks, attention, ffn))
        if not self.lazy:
            compute(_catch_up, self)


def _catch_up(record: Record) -> None:
    pending, record.pending = record.pending, []
    taps = record.taps
    left = taps.not_native(record, pending) if record.native else list(record.computed)
    if not left:
        return
    made = taps.made_at_once(pending, left) if record.lazy else {}
    for hooks, attention, ffn in pending:
        hooks.step(record, attention, ffn, left, made)


ACTIVE: ContextVar[Record | None] = ContextVar("otter_record", default=None)
INSIDE: ContextVar[bool] = ContextVar("otter_inside", default=False)


def inside_insertion() -> bool:
    """Whether the operation that runs now is the insertion's: what a trace needs to tell the two
    apart."""
    return INSIDE.get()


class Hook:
    """Calls `handler(record, module, ...)` while `taps` are recording, and returns None, so that
    torch passes the base's own tensors on. The handler remembers and computes nothing: what does
    goes through `compute`."""

    __slots__ = ("handler", "taps")

    def __init__(self, taps: StreamRunner, handler: Callable[..., None]) -> None:
        self.taps, self.handler = taps, handler

    def __call__(self, module: nn.Module, *arguments: Any) -> None:
        record = ACTIVE.get()
        if record is not None and record.taps is self.taps:
            self.handler(record, module, *arguments)


class Tapped:
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
        record = ACTIVE.get()
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


def compute(work: Callable[..., None], record: Record, *arguments: Any) -> None:
    """`work(record, ...)`, whose operations are the insertion's."""
    token = INSIDE.set(True)
    try:
        if torch.is_grad_enabled() == record.grad:
            work(record, *arguments)
        else:
            with torch.set_grad_enabled(record.grad):
                work(record, *arguments)
    finally:
        INSIDE.reset(token)
