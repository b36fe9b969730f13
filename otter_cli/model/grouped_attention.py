"""Attention over grouped keys and values without a copy of them for every query head.

A step of several tokens with a mask makes transformers repeat the cached keys and values for every
query head of their group, in every layer and at every step, because the fast kernels of GPUs take
no mask with groups. torch's kernel for CPUs takes one. It reads the same numbers in the same order,
so the result is the same, bit for bit (tests/exact/test_grouped_attention.py). Decoding sessions
use it, for the base and for inserted heads. Outside `unrepeated_keys` nothing changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward

AttentionFunction = Callable[..., tuple[Tensor, Any]]

_ACTIVE: ContextVar[bool] = ContextVar("otter_unrepeated_keys", default=False)
# Arguments that change the result and that `_grouped_sdpa` does not read.
_UNREAD = ("position_bias", "softcap", "cache", "output_attentions")


@contextmanager
def unrepeated_keys() -> Iterator[None]:
    """Attention calls inside do not repeat keys and values, where the kernel allows it."""
    token = _ACTIVE.set(True)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def attention_to_run(function: AttentionFunction) -> AttentionFunction:
    """`function`, or inside `unrepeated_keys` the one that gives its result without the copy."""
    return _grouped_sdpa if function is sdpa_attention_forward and _ACTIVE.get() else function


def _grouped_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    **arguments: Any,
) -> tuple[Tensor, Any]:
    # With one token or without a mask, transformers repeats nothing itself.
    repeats = mask is not None and query.shape[2] > 1 and query.shape[1] != key.shape[1]
    if not repeats or query.device.type != "cpu" or any(arguments.get(name) for name in _UNREAD):
        return sdpa_attention_forward(module, query, key, value, mask, **arguments)
    attended = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=arguments.get("dropout", 0.0),
        scale=arguments.get("scaling"),
        enable_gqa=True,
    )
    return attended.transpose(1, 2).contiguous(), None
