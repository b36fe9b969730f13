"""What a model family looks like, as data: where its modules are and which traits matter.

Module names are relative to a decoder layer; a tensor on disk is the module's full name plus
`.weight` or `.bias`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# A trait that the configuration decides: fixed, or the name of a boolean key in config.json.
Flag = bool | str


@dataclass(frozen=True)
class Attention:
    """The attention block of a layer: its input norm, projections and biases."""

    module: str = "self_attn"
    norm: str = "input_layernorm"
    query: str = "self_attn.q_proj"
    key: str = "self_attn.k_proj"
    value: str = "self_attn.v_proj"
    out: str = "self_attn.o_proj"
    bias: Flag = False
    out_bias: Flag = False
    # Norms of q and k per head (Qwen3), which inserted heads get too.
    query_norm: str | None = None
    key_norm: str | None = None


@dataclass(frozen=True)
class FeedForward:
    """The gated FFN block of a layer."""

    module: str = "mlp"
    norm: str = "post_attention_layernorm"
    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"
    bias: Flag = False


@dataclass(frozen=True)
class Family:
    """One entry of the registry. `decoder` is the module that ends in the final norm."""

    model_type: str
    architecture: str
    decoder: str = "model"
    layers: str = "model.layers"
    embedding: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    head: str = "lm_head"
    attention: Attention = field(default_factory=Attention)
    ffn: FeedForward = field(default_factory=FeedForward)

    def layer(self, index: int, part: str) -> str:
        """Full module name of `part` in decoder layer `index`."""
        return f"{self.layers}.{index}.{part}"


@dataclass(frozen=True)
class BaseShape:
    """The sizes of a base, read from its config.json; METHOD notation in brackets."""

    family: Family
    layers: int  # [L]
    hidden: int  # [d]
    heads: int  # [H]
    kv_heads: int  # [K]
    head_dim: int  # [c]
    ffn: int  # [F]
    vocab: int  # [V]
    max_positions: int
    norm_eps: float
    activation: str
    tied: bool
    attention_bias: bool
    out_bias: bool
    ffn_bias: bool

    @property
    def group(self) -> int:
        """Query heads that share one key/value head [H / K]."""
        return self.heads // self.kv_heads

    def parameters(self) -> int:
        """Parameters of the base by its shape (biases and norms included)."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        biases = self.head_dim * (self.heads + 2 * self.kv_heads) * self.attention_bias
        biases += self.hidden * self.out_bias + (2 * self.ffn + self.hidden) * self.ffn_bias
        head_norms = self.head_dim * sum(
            norm is not None
            for norm in (self.family.attention.query_norm, self.family.attention.key_norm)
        )
        per_layer = attention + 3 * self.hidden * self.ffn + 2 * self.hidden + biases + head_norms
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        return self.layers * per_layer + embeddings + self.hidden


def flag(value: Flag, config: dict[str, Any]) -> bool:
    """Resolves a trait against config.json."""
    return bool(config.get(value, False)) if isinstance(value, str) else value
