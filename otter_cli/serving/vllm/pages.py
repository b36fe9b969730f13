"""The engine's key/value cache on a processor, as native code reads it."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from vllm import _custom_ops as engine_ops
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl, _get_attn_isa

# A block has multiples of SLOTS, which the engine's kernels take at a time; stream.cpp takes LANES.
SLOTS, LANES = 32, 16


@cache
def kernels(dtype: torch.dtype, head_dim: int) -> str:
    """The engine's name for the kernels that write such a cache; they decide how it lies in
    memory."""
    return _get_attn_isa(dtype, SLOTS, head_dim)


@cache
def readable(dtype: torch.dtype, head_dim: int) -> bool:
    """Whether those kernels write a block as stream.cpp's Pages says: asked of the kernels."""
    if dtype not in (torch.float32, torch.bfloat16) or head_dim % LANES:
        return False
    blocks, heads = 2, 2
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(2, blocks * SLOTS, heads, head_dim, generator=random).to(dtype)
    found = torch.zeros(blocks, heads, 2 * SLOTS, head_dim, dtype=dtype)
    try:
        engine_ops.cpu_attn_reshape_and_cache(
            *rows, *found.chunk(2, 2), torch.arange(blocks * SLOTS), kernels(dtype, head_dim)
        )
    except (RuntimeError, NotImplementedError):
        return False
    keys, values = rows.unflatten(1, (blocks, SLOTS)).transpose(2, 3)
    if dtype == torch.float32:
        keys = keys.mT
    else:
        keys = keys.unflatten(-1, (-1, 2)).unflatten(-3, (-1, LANES)).transpose(-2, -3)
        values = values.mT.unflatten(-1, (-1, 2)).unflatten(-3, (-1, LANES)).transpose(-2, -3)
    return torch.equal(found.flatten(2), torch.cat([keys.flatten(2), values.flatten(2)], -1))


def plain(attention: Any) -> bool:
    """Whether an attention layer of the engine has such a cache, and sees all that is past."""
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
    """Raises RuntimeError where the engine took other kernels than were asked."""
    size, width = cache.shape[2:]
    known = attention.isa == kernels(cache.dtype, width // 2)
    if size % SLOTS or not known or cache.stride(2) != width:
        raise RuntimeError(
            f"a cache of {list(cache.shape)} by {attention.isa} is not read natively"
        )
