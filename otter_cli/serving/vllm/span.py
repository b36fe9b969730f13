"""Attention over some of the base's key/value heads, where inserted query heads read no others.

vLLM's attention wants the same number of query heads on every key/value head of a cache. On a CPU
the cache lies head by head, so a span of heads is a cache in itself; elsewhere zero heads fill up
(`layout`).
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadataBuilder,
)


class SpanImpl(CPUAttentionBackendImpl):
    """Sees `num_kv_heads` heads of the cache, from `first_kv_head` on."""

    def __init__(self, *arguments: Any, first_kv_head: int, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.seen = slice(first_kv_head, first_kv_head + self.num_kv_heads)

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: Any,
        output: Tensor,
        **scales: Any,
    ) -> Tensor:
        # Before there is a cache the engine runs a batch without metadata.
        seen = kv_cache if attn_metadata is None else kv_cache[:, self.seen]
        return super().forward(layer, query, key, value, seen, attn_metadata, output, **scales)


@cache
def spanning(backend: type[Any], count: int) -> type[Any] | None:
    """`backend` for layers that read `count` key/value heads of a larger cache; None where a
    backend's cache cannot be read so."""
    if backend is not CPUAttentionBackend:
        return None

    class Builder(CPUAttentionMetadataBuilder):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self.num_kv_heads = count

    class Backend(CPUAttentionBackend):
        @staticmethod
        def get_impl_cls() -> type[CPUAttentionBackendImpl]:
            return SpanImpl

        @staticmethod
        def get_builder_cls() -> type[CPUAttentionMetadataBuilder]:
            return Builder

    # The engine tells backends apart by their qualified names.
    Backend.__qualname__ = f"SpanOf{count}"
    return Backend
