"""What one forward of the base carries beside it, and whether one is being carried now."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from otter_cli.model.branch import BranchTap

if TYPE_CHECKING:
    from otter_cli.model.taps import Taps


@dataclass
class Record:
    """One forward of the base with its inserted streams; `grad`: whether they build a graph."""

    taps: Taps
    grad: bool
    streams: dict[str, Tensor] = field(default_factory=dict)  # z, [batch, tokens, D]
    branch: BranchTap | None = None
    residual: Tensor | None = None
    base_state: Tensor | None = None  # y, [batch, tokens, d]
    inserted_state: dict[str, Tensor] = field(default_factory=dict)  # v, [batch, tokens, D]


ACTIVE: ContextVar[Record | None] = ContextVar("otter_record", default=None)
INSIDE: ContextVar[bool] = ContextVar("otter_inside", default=False)


def inside_insertion() -> bool:
    """Whether the operation that runs now is the insertion's: what a trace needs to tell the two
    apart."""
    return INSIDE.get()


def hook(taps: Taps, handler: Callable[..., None]) -> Callable[..., None]:
    """A hook that calls `handler(record, module, ...)` while `taps` are recording, and returns
    None, so that torch passes the base's own tensors on."""

    def run(module: nn.Module, *arguments: Any) -> None:
        record = ACTIVE.get()
        if record is None or record.taps is not taps:
            return
        token = INSIDE.set(True)
        try:
            with torch.set_grad_enabled(record.grad):
                handler(record, module, *arguments)
        finally:
            INSIDE.reset(token)

    return run
