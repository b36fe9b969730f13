"""The one place where modelling files look up their attention function, tapped: inserted heads
repeat the base's call with its own mask, scale and window."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface

from otter_cli.model.branch import AttentionCall
from otter_cli.model.record import ACTIVE, Record


def tap_attention_functions() -> None:
    """Wraps the look-up. Without a record it is as before."""
    look_up = AttentionInterface.get_interface

    def get_interface(
        self: AttentionInterface, name: str, default: Callable[..., Any]
    ) -> Callable[..., Any]:
        function = look_up(self, name, default)
        record = ACTIVE.get()
        if record is None:
            return function

        return partial(_tapped, record, function)

    AttentionInterface.get_interface = get_interface


def _tapped(
    record: Record,
    function: Callable[..., tuple[Tensor, Any]],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    **arguments: Any,
) -> tuple[Tensor, Any]:
    if module in record.taps.attention:
        record.seen.append((_keep, (function, module, key, value, mask, arguments), None))
    return function(module, query, key, value, mask, **arguments)


def _keep(record: Record, given: tuple[Any, ...], named: None) -> None:
    assert record.attention is not None
    record.attention.call = AttentionCall(*given)
