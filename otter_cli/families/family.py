"""The fields that describe a model family: where its modules are, and which traits matter.

Module names are relative to a decoder layer. A tensor on disk is called by the module's full name
plus `.weight` or `.bias`. An empty name means that the family has no such module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

# A trait that the configuration decides: fixed, or the name of a key in config.json.
FlagTrait = bool | str
ScaleTrait = float | str
SQRT_HIDDEN_SIZE = "sqrt(hidden_size)"

# Where query, key and value lie in one projection: three of them, one after the other, or in turn
# within each head.
QkvFusion = Literal["apart", "stacked", "by head"]
# What the stream reads of a branch: what goes into its last product, or what comes out of it all.
Tap = Literal["input", "output"]


@dataclass(frozen=True)
class Attention:
    """The attention branch of a layer: its norms, projections and biases."""

    module: str = "self_attn"
    norm: str = "input_layernorm"
    post_norm: str = ""
    query: str = "self_attn.q_proj"
    key: str = "self_attn.k_proj"
    value: str = "self_attn.v_proj"
    out: str = "self_attn.o_proj"
    fused: QkvFusion = "apart"
    bias: FlagTrait = False
    out_bias: FlagTrait = False
    # Every head has a key and a value of its own, of hidden_size / num_attention_heads dimensions:
    # num_key_value_heads and head_dim, where config.json has them, are not read.
    equal_heads: bool = False
    # Norms of q and k, which inserted heads get too: per head, or over all heads jointly.
    query_norm: str = ""
    key_norm: str = ""
    joint_norm: bool = False
    # One logit a head that takes its share of the softmax and gives nothing.
    sinks: str = ""
    # The attribute of the attention module that says whether this layer rotates at all.
    rotary_if: str = ""
    # The query is scaled before the attention function is called, which is told a scale of 1.
    scaled_query: bool = False
    tap: Tap = "input"
    # The module that some layers have in this one's place; read by its output.
    elsewhere: str = ""

    @property
    def end(self) -> str:
        """The last product of the branch."""
        return self.out


@dataclass(frozen=True)
class FeedForward:
    """The FFN branch of a layer. Without names of gate and up, inserted units begin at random."""

    module: str = "mlp"
    norm: str = "post_attention_layernorm"
    post_norm: str = ""
    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"
    # Not gated: act(x W_u) alone.
    plain: bool = False
    # One projection with the gate's rows first, then the up projection's.
    fused: bool = False
    bias: FlagTrait = False
    # F over d where the configuration leaves F out.
    widening: int | None = None
    tap: Tap = "input"
    # Where else the copied units may come from: (gate, up) of layers that are built otherwise.
    elsewhere: tuple[tuple[str, str], ...] = ()

    @property
    def end(self) -> str:
        """The last product of the branch."""
        return self.down


@dataclass(frozen=True)
class LearnedPositions:
    """Learned positions: a table on disk, indexed by position id plus `offset`."""

    module: str
    offset: int = 0


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
    # The head's name on disk, where that is another.
    stored_head: str = ""
    # The head adds a bias.
    head_bias: bool = False
    positions: LearnedPositions | None = None
    attention: Attention = field(default_factory=Attention)
    ffn: FeedForward = field(default_factory=FeedForward)
    norm: Literal["rms", "layer"] = "rms"
    norm_bias: bool = False
    # Norms multiply by offset + weight.
    norm_offset: float = 0.0
    # Both branches read the layer's input.
    parallel: FlagTrait = False
    # Weights lie as [in, out] on disk.
    transposed: bool = False
    embedding_scale: ScaleTrait = 1.0
    residual_scale: ScaleTrait = 1.0
    logit_scale: ScaleTrait = 1.0
    logit_divisor: ScaleTrait = 1.0
    logit_cap: str = ""
    # Llama's configuration keys, where this family has others; and what is meant by an absent key.
    keys: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    # (key, value, why not): members of the family that are built otherwise.
    refused: tuple[tuple[str, Any, str], ...] = ()
    # Tensors of a layer on disk, in older files at least, that are no parameters: loaders leave
    # them out, or read them as buffers.
    buffers: tuple[str, ...] = ("self_attn.rotary_emb.inv_freq",)
    # Why it takes no inserted heads; empty: it takes them.
    ffn_only: str = ""

    def layer(self, index: int, part: str) -> str:
        """Full module name of `part` in decoder layer `index`."""
        return f"{self.layers}.{index}.{part}"

    @property
    def head_weight(self) -> str:
        """The head's tensor on disk, where it is not the embedding."""
        return f"{self.stored_head or self.head}.weight"

    def on_disk(self, name: str) -> tuple[str, ...]:
        """The names a tensor may have in a file: some checkpoints leave the first part out."""
        return name, name.partition(".")[2]
