"""One decoder layer of the base, its own modules called as vLLM's forward calls them, with the
streams beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from otter_cli.serving.vllm.stream import Stream


def run_layer(
    layer: Any,
    index: int,
    streams: Sequence[Stream],
    positions: Tensor,
    hidden: Tensor,
    residual: Tensor | None,
    states: list[Tensor],
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The layer's (hidden, residual), and every stream's z, [tokens, D]."""
    if residual is None:
        x, h = layer.input_layernorm(hidden), hidden
    else:
        x, h = layer.input_layernorm(hidden, residual)
    attention, mlp = layer.self_attn, layer.mlp
    a = attention.attn(*_heads(attention, positions, x))
    place = str(index)
    states = [
        stream.attention[place](z, x, h, a, positions, attention.rotary_emb)
        if place in stream.attention
        else z
        for stream, z in zip(streams, states, strict=True)
    ]
    out, _ = attention.o_proj(a)
    x, h = layer.post_attention_layernorm(out, h)
    m = mlp.act_fn(mlp.gate_up_proj(x)[0])
    states = [
        stream.ffn[place](z, x, h, m) if place in stream.ffn else z
        for stream, z in zip(streams, states, strict=True)
    ]
    out, _ = mlp.down_proj(m)
    return out, h, states


def _heads(attention: Any, positions: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated query and key, and value, each [tokens, heads * head_dim]."""
    qkv, _ = attention.qkv_proj(x)
    q, k, v = qkv.split([attention.q_size, attention.kv_size, attention.kv_size], -1)
    if hasattr(attention, "q_norm"):
        by_head = (-1, attention.head_dim)
        q = attention.q_norm(q.unflatten(-1, by_head)).view(q.shape)
        k = attention.k_norm(k.unflatten(-1, by_head)).view(k.shape)
    q, k = attention.rotary_emb(positions, q, k)
    return q, k, v
