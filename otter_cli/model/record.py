"""What one forward of the base carries beside it, and whether one is being carried now."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from otter_cli.model.branch import AttentionTap, BranchTap
from otter_cli.model.rotary import Rotations

if TYPE_CHECKING:
    from otter_cli.model.layer_hooks import LayerHooks
    from otter_cli.model.taps import Taps

# A layer's hooks, and what they were handed.
Pending = tuple["LayerHooks", AttentionTap, BranchTap]


@dataclass(slots=True)
class Record:
    """One forward of the base with its inserted streams; `grad`: whether they build a graph."""

    taps: Taps
    grad: bool
    computed: dict[str, Tensor] = field(default_factory=dict)  # z, but for what is pending
    pending: list[Pending] = field(default_factory=list)
    lazy: bool = False  # layers of the streams wait until someone reads them
    deferred: bool = False  # who reads them is no one in this forward
    # Of the layer that runs now.
    attention: AttentionTap | None = None
    ffn: BranchTap | None = None
    residual: Tensor | None = None
    rotations: Rotations = field(default_factory=Rotations)
    base_state: Tensor | None = None  # y, [batch, tokens, d]
    inserted_state: dict[str, Tensor] = field(default_factory=dict)  # v, [batch, tokens, D]

    @property
    def streams(self) -> dict[str, Tensor]:
        """z of every insertion, [batch, tokens, D], after the layers that the base has run."""
        if self.pending:
            compute(_catch_up, self)
        return self.computed

    def take(self, hooks: LayerHooks, attention: AttentionTap, ffn: BranchTap) -> None:
        """A layer of the streams whose base has handed over all that it reads."""
        if self.lazy:
            self.pending.append((hooks, attention, ffn))
        else:
            compute(hooks.step, self, attention, ffn, {})


def _catch_up(record: Record) -> None:
    pending, record.pending = record.pending, []
    made = record.taps.made_at_once(pending)
    for hooks, attention, ffn in pending:
        hooks.step(record, attention, ffn, made)


ACTIVE: ContextVar[Record | None] = ContextVar("otter_record", default=None)
INSIDE: ContextVar[bool] = ContextVar("otter_inside", default=False)


def inside_insertion() -> bool:
    """Whether the operation that runs now is the insertion's: what a trace needs to tell the two
    apart."""
    return INSIDE.get()


def hook(taps: Taps, handler: Callable[..., None]) -> Callable[..., None]:
    """A hook that calls `handler(record, module, ...)` while `taps` are recording, and returns
    None, so that torch passes the base's own tensors on. The handler remembers and computes
    nothing: what does goes through `compute`."""

    def run(module: nn.Module, *arguments: Any) -> None:
        record = ACTIVE.get()
        if record is not None and record.taps is taps:
            handler(record, module, *arguments)

    return run


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
