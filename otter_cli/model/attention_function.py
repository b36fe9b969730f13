"""The one place where modelling files look up their attention function, tapped: inserted heads
repeat the base's call with its own mask, scale and window."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface

from otter_cli.model.branch import AttentionCall
from otter_cli.model.record import ACTIVE


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

        def tapped(
            module: nn.Module,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            mask: Tensor | None,
            **arguments: Any,
        ) -> tuple[Tensor, Any]:
            if record.attention is not None and module in record.taps.attention:
                record.attention.call = AttentionCall(function, module, key, value, mask, arguments)
            return function(module, query, key, value, mask, **arguments)

        return tapped

    AttentionInterface.get_interface = get_interface
