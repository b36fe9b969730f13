"""The second of two ways in which the base is read: the arguments of its attention call.

Modelling files look their attention function up by name in transformers' AttentionInterface, and
call it with queries, keys, values, the mask and further arguments. No module sees these, so no
wrapped forward (capture.py) can capture them. Therefore the look-up is wrapped, once in a process,
when the first graft is made. Without an active context it returns what it returned before. Within
one, it returns a function that captures the arguments and then makes the same call.

A decoding session also has the same attention run without a copy of keys (grouped_attention.py).
Registering an attention function of another name would also work, but it would change
`config._attn_implementation`, and with it the masks that transformers makes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface

from otter_cli.model.activations import AttentionCall
from otter_cli.model.forward_context import ACTIVE_CONTEXT, ForwardContext
from otter_cli.model.grouped_attention import attention_to_run


@cache
def install_attention_hook() -> None:
    """Wraps the look-up. Further calls do nothing."""
    look_up = AttentionInterface.get_interface

    def get_interface(
        self: AttentionInterface, name: str, default: Callable[..., Any]
    ) -> Callable[..., Any]:
        function = look_up(self, name, default)
        context = ACTIVE_CONTEXT.get()
        if context is None:
            return attention_to_run(function)
        return partial(_captured_attention, context, function)

    AttentionInterface.get_interface = get_interface


def _captured_attention(
    context: ForwardContext,
    function: Callable[..., tuple[Tensor, Any]],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    **arguments: Any,
) -> tuple[Tensor, Any]:
    if module in context.capture.captured_attentions:
        call = function, module, key, value, mask, arguments
        context.captured.append((_keep_call, call, None))
    return attention_to_run(function)(module, query, key, value, mask, **arguments)


def _keep_call(context: ForwardContext, call: tuple[Any, ...], kwargs: None) -> None:
    assert context.attention is not None
    context.attention.call = AttentionCall(*call)
    context.attention.call.converted = context.converted_masks
