"""The KV cache of a CPU engine: its layout in memory, and attention over a slice of its heads.

On a CPU the cache is stored head by head, so a slice of key/value heads is a cache in itself. vLLM
wants the same number of query heads for every key/value head; on other backends zero heads fill up
(`rank_layout.py`). Native code reads the cache only where the layout was checked.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from vllm import _custom_ops as engine_ops
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadataBuilder,
    _get_attn_isa,
)


class KVSliceAttention(CPUAttentionBackendImpl):
    """Reads `num_kv_heads` heads of the cache, from `first_kv_head` on."""

    def __init__(self, *arguments: Any, first_kv_head: int, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.kv_slice = slice(first_kv_head, first_kv_head + self.num_kv_heads)

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
        # Without metadata the engine runs a batch before there is a cache.
        heads = kv_cache if attn_metadata is None else kv_cache[:, self.kv_slice]
        return super().forward(layer, query, key, value, heads, attn_metadata, output, **scales)


@cache
def slice_backend(backend: type[Any], count: int) -> type[Any] | None:
    """`backend` for layers that read `count` key/value heads of a larger cache; None where the
    backend's cache does not allow it."""
    if backend is not CPUAttentionBackend:
        return None

    class Builder(CPUAttentionMetadataBuilder):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self.num_kv_heads = count

    class Backend(CPUAttentionBackend):
        @staticmethod
        def get_impl_cls() -> type[CPUAttentionBackendImpl]:
            return KVSliceAttention

        @staticmethod
        def get_builder_cls() -> type[CPUAttentionMetadataBuilder]:
            return Builder

    # The engine tells backends apart by their qualified names.
    Backend.__qualname__ = f"KVSliceOf{count}"
    return Backend


# Block sizes are multiples of BLOCK_SLOTS, which the engine's kernels process at a time;
# stream.cpp processes LANES at a time.
BLOCK_SLOTS, LANES = 32, 16


@cache
def kernel_name(dtype: torch.dtype, head_dim: int) -> str:
    """The engine's name for the kernels that write such a cache, and so decide its layout."""
    return _get_attn_isa(dtype, BLOCK_SLOTS, head_dim)


@cache
def is_known_layout(dtype: torch.dtype, head_dim: int) -> bool:
    """Whether those kernels write a block in the layout that stream.cpp's Pages reads: random
    values are written, and compared."""
    if dtype not in (torch.float32, torch.bfloat16) or head_dim % LANES:
        return False
    blocks, heads = 2, 2
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(2, blocks * BLOCK_SLOTS, heads, head_dim, generator=random).to(dtype)
    written = torch.zeros(blocks, heads, 2 * BLOCK_SLOTS, head_dim, dtype=dtype)
    try:
        engine_ops.cpu_attn_reshape_and_cache(
            *rows,
            *written.chunk(2, 2),
            torch.arange(blocks * BLOCK_SLOTS),
            kernel_name(dtype, head_dim),
        )
    except (RuntimeError, NotImplementedError):
        return False
    keys, values = rows.unflatten(1, (blocks, BLOCK_SLOTS)).transpose(2, 3)
    if dtype == torch.float32:
        keys = keys.mT
    else:
        keys = keys.unflatten(-1, (-1, 2)).unflatten(-3, (-1, LANES)).transpose(-2, -3)
        values = values.mT.unflatten(-1, (-1, 2)).unflatten(-3, (-1, LANES)).transpose(-2, -3)
    return torch.equal(written.flatten(2), torch.cat([keys.flatten(2), values.flatten(2)], -1))


def is_plain_attention(attention: Any) -> bool:
    """Whether an attention layer of the engine has such a cache, and sees the whole past."""
    impl = attention.impl
    return (
        type(impl) is CPUAttentionBackendImpl
        and impl.attn_type == AttentionType.DECODER
        and impl.sliding_window == -1
        and not impl.logits_soft_cap
        and impl.alibi_slopes is None
        and impl.sinks is None
        and not impl.is_fp8_kv_cache
    )


def check_cache(attention: Any, cache: Tensor) -> None:
    """Raises RuntimeError where the engine uses other kernels than the checked ones."""
    size, width = cache.shape[2:]
    known = attention.isa == kernel_name(cache.dtype, width // 2)
    if size % BLOCK_SLOTS or not known or cache.stride(2) != width:
        raise RuntimeError(
            f"a cache of {list(cache.shape)} by {attention.isa} is not read natively"
        )
