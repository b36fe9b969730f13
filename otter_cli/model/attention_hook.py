"""The second way in which the base is read: its attention call.

Modelling files look their attention function up in transformers' AttentionInterface. The look-up
is wrapped once, when this package is imported. While a context is active, it returns a function
that captures the call's arguments, so that inserted heads repeat the call with the base's own
mask, scale and window."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface

from otter_cli.model.activations import AttentionCall
from otter_cli.model.forward_context import ACTIVE_CONTEXT, ForwardContext


def install_attention_hook() -> None:
    """Wraps the look-up. Without a record it is as before."""
    look_up = AttentionInterface.get_interface

    def get_interface(
        self: AttentionInterface, name: str, default: Callable[..., Any]
    ) -> Callable[..., Any]:
        function = look_up(self, name, default)
        record = ACTIVE_CONTEXT.get()
        if record is None:
            return function

        return partial(_captured_attention, record, function)

    AttentionInterface.get_interface = get_interface


def _captured_attention(
    record: ForwardContext,
    function: Callable[..., tuple[Tensor, Any]],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    **arguments: Any,
) -> tuple[Tensor, Any]:
    if module in record.taps.attention:
        record.seen.append((_capture_call, (function, module, key, value, mask, arguments), None))
    return function(module, query, key, value, mask, **arguments)


def _capture_call(record: ForwardContext, given: tuple[Any, ...], named: None) -> None:
    assert record.attention is not None
    record.attention.call = AttentionCall(*given)
