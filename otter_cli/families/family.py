"""The fields that describe a model family: the names of its modules, and its traits.

Module names are relative to a decoder layer. A tensor on disk has the module's full name plus
`.weight` or `.bias`. An empty name means that the family has no such module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

# A trait is a fixed value, or the name of the key in config.json that decides it.
FlagTrait = bool | str
ScaleTrait = float | str
SQRT_HIDDEN_SIZE = "sqrt(hidden_size)"

# How the rows of query, key and value lie: in three projections, one after the other in a single
# projection, or in turn within each head of a single projection.
QkvFusion = Literal["apart", "stacked", "interleaved"]
# Where the stream reads a branch: at the input of its last linear, or at the output of the branch.
ReadAt = Literal["input", "output"]


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
    # Every head has its own key and value, of hidden_size / num_attention_heads dimensions.
    # num_key_value_heads and head_dim are not read from config.json.
    multi_head: bool = False
    # Norms of queries and keys, per head or over all heads jointly. Inserted heads have them too.
    query_norm: str = ""
    key_norm: str = ""
    joint_norm: bool = False
    # A tensor with one logit for each head, which takes part in the softmax and has no value.
    sinks: str = ""
    # The attribute of the attention module that says whether the layer has rotary embeddings.
    rotary_flag: str = ""
    # The query is scaled before the attention function is called with a scale of 1.
    scaled_query: bool = False
    read_at: ReadAt = "input"
    # The module that replaces this one in some layers. The stream reads its output.
    alternative_module: str = ""

    @property
    def last_linear(self) -> str:
        return self.out


@dataclass(frozen=True)
class FeedForward:
    """The FFN branch of a layer. Without names of gate and up, inserted units start at random."""

    module: str = "mlp"
    norm: str = "post_attention_layernorm"
    post_norm: str = ""
    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"
    # There is no gate: act(x W_u) instead of act(x W_g) * x W_u.
    ungated: bool = False
    # A single projection holds the rows of the gate, then those of the up projection.
    fused: bool = False
    bias: FlagTrait = False
    # F / d where config.json leaves F out.
    expansion: int | None = None
    read_at: ReadAt = "input"
    # (gate, up) in layers that are built differently. Units may be copied from these as well.
    alternatives: tuple[tuple[str, str], ...] = ()

    @property
    def last_linear(self) -> str:
        return self.down


@dataclass(frozen=True)
class LearnedPositions:
    """A table of learned positions, whose rows are indexed by position id plus `offset`."""

    module: str
    offset: int = 0


@dataclass(frozen=True)
class Family:
    """One model family. `decoder` is the module that ends in the final norm."""

    model_type: str
    architecture: str
    decoder: str = "model"
    layers: str = "model.layers"
    embedding: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    head: str = "lm_head"
    # The head's name on disk, where it differs.
    stored_head: str = ""
    head_bias: bool = False
    positions: LearnedPositions | None = None
    attention: Attention = field(default_factory=Attention)
    ffn: FeedForward = field(default_factory=FeedForward)
    norm: Literal["rms", "layer"] = "rms"
    norm_bias: bool = False
    # Norms multiply by norm_offset + weight.
    norm_offset: float = 0.0
    # Both branches read the layer's input.
    parallel: FlagTrait = False
    # Weights are stored as [in, out].
    transposed: bool = False
    embedding_scale: ScaleTrait = 1.0
    residual_scale: ScaleTrait = 1.0
    logit_scale: ScaleTrait = 1.0
    logit_divisor: ScaleTrait = 1.0
    logit_cap: str = ""
    # The family's names for Llama's configuration keys, and the values of absent keys.
    keys: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    # (key, value, reason): members of the family that are not supported.
    refused: tuple[tuple[str, Any, str], ...] = ()
    # Stored tensors of a layer that are no parameters, in older files at least. Loaders ignore
    # them or read them as buffers.
    buffers: tuple[str, ...] = ("self_attn.rotary_emb.inv_freq",)
    # The reason why the family takes no inserted heads. Empty where it takes them.
    ffn_only: str = ""
    # The wide layout holds the family (see `registry.wide_layout_refusal`).
    wide: bool = False

    def module_name(self, layer: int, part: str) -> str:
        """The full name of the module `part` of a decoder layer."""
        return f"{self.layers}.{layer}.{part}"

    @property
    def head_weight(self) -> str:
        """The head's tensor on disk, where the head is not tied to the embedding."""
        return f"{self.stored_head or self.head}.weight"

    def stored_names(self, name: str) -> tuple[str, str]:
        """The names that a tensor may have in a file: some checkpoints omit the first part."""
        return name, name.partition(".")[2]
