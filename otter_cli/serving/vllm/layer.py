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
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """The layer's (hidden, residual), every stream's z [tokens, D], and what streams read that
    wait: the branches' inputs, attention's output and m."""
    if residual is None:
        x, h = layer.input_layernorm(hidden), hidden
    else:
        x, h = layer.input_layernorm(hidden, residual)
    attention, mlp = layer.self_attn, layer.mlp
    # Streams without inserted parts here pass their z on.
    beside = {number: s.layer(index) for number, s in enumerate(streams)}
    here = {number: parts for number, parts in beside.items() if parts is not None}
    heads, states = _heads(attention, positions, x), list(states)
    asked = {
        number: one.ask(states[number], x, h, positions, attention.rotary_emb)
        for number, (one, _) in here.items()
    }
    taps, a = [x], attention.attn(*heads)
    found = {number: one.attended(asked[number]) for number, (one, _) in here.items()}
    for number, (one, _) in here.items():
        states[number] = one.out(states[number], a, found[number])
    out, _ = attention.o_proj(a)
    x, h = layer.post_attention_layernorm(out, h)
    m = mlp.act_fn(mlp.gate_up_proj(x)[0])
    for number, (_, ffn) in here.items():
        states[number] = ffn(states[number], x, h, m)
    out, _ = mlp.down_proj(m)
    return out, h, states, [*taps, a, x, m]


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
