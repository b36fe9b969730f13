"""The shape of a base by its config.json: sizes, resolved traits, tensors and parameter count.

Mixtures of experts and special attention are listed in part: `has_complete_tensor_list` says which.
For those, transformers itself says which tensors belong to the base (graft/base_check.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import Any

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.core.errors import OtterError
from otter_cli.families.family import SQRT_HIDDEN_SIZE, Family, FlagTrait, ScaleTrait
from otter_cli.families.registry import find_family
from otter_cli.families.rope import LengthRule, length_rule, scaled_max_positions

# No model that fits a machine is larger than this in any one dimension.
_MAX_SIZE = 1 << 24


@dataclass(frozen=True)
class BaseShape:
    """Sizes and resolved traits of a base. In brackets: docs/method.md, "Symbols"."""

    family: Family
    layers: int  # [L]
    hidden: int  # [d]
    heads: int  # [H]
    kv_heads: int  # [K]
    head_dim: int  # [c]
    ffn: int  # [F], of one expert in a mixture
    vocab: int  # [V]
    max_positions: int
    norm_eps: float
    activation: str
    tied: bool
    attention_bias: bool
    out_bias: bool
    ffn_bias: bool
    parallel: bool
    embedding_scale: float
    residual_scale: float
    logit_scale: float
    logit_divisor: float
    logit_cap: float | None
    length_rule: LengthRule | None

    @property
    def queries_per_kv_head(self) -> int:
        """Query heads that share one key/value head [H / K]."""
        return self.heads // self.kv_heads

    @property
    def position_rows(self) -> int:
        """Rows of the table of learned positions, 0 where there is none."""
        learned = self.family.positions
        return self.max_positions + learned.offset if learned else 0


def base_shape(config: dict[str, Any]) -> BaseShape:
    """The shape that config.json describes. Raises OtterError for missing or absurd numbers, and
    for members of a family that are not supported."""
    family = find_family(config)
    read = _ConfigReader(family, config)
    for key, refused, reason in family.refused:
        if read.value(key) == refused:
            raise OtterError(
                f"this {family.model_type} is not supported: {reason} ({key} is {refused})",
                hint="others of the family are; `otter inspect --families` lists what is",
            )
    heads, hidden = read.size("num_attention_heads"), read.size("hidden_size")
    kv_heads, head_dim = heads, max(hidden // heads, 1)
    if not family.attention.multi_head:
        kv_heads = read.size("num_key_value_heads", default=kv_heads)
        head_dim = read.size("head_dim", default=head_dim)
    if heads % kv_heads:
        raise OtterError(
            f"config.json: num_attention_heads {heads} is not a multiple of "
            f"num_key_value_heads {kv_heads}",
            hint="the checkpoint's configuration is damaged",
        )
    expansion = family.ffn.expansion
    cap = read.value(family.logit_cap) if family.logit_cap else None
    return BaseShape(
        family=family,
        layers=read.size("num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=read.size("intermediate_size", default=expansion and expansion * hidden),
        vocab=read.size("vocab_size"),
        max_positions=scaled_max_positions(
            config, read.size("max_position_embeddings", default=2048)
        ),
        norm_eps=read.number("rms_norm_eps", 1e-6),
        activation=str(read.value("hidden_act", "silu")),
        tied=read.flag("tie_word_embeddings"),
        attention_bias=read.flag(family.attention.bias),
        out_bias=read.flag(family.attention.out_bias),
        ffn_bias=read.flag(family.ffn.bias),
        parallel=read.flag(family.parallel),
        embedding_scale=(
            sqrt(hidden)
            if family.embedding_scale == SQRT_HIDDEN_SIZE
            else read.scale(family.embedding_scale)
        ),
        residual_scale=read.scale(family.residual_scale),
        logit_scale=read.scale(family.logit_scale),
        logit_divisor=read.scale(family.logit_divisor),
        logit_cap=None if cap is None else float(cap),
        length_rule=length_rule(config),
    )


class _ConfigReader:
    """Reads config.json by Llama's keys, with the family's defaults for absent keys."""

    def __init__(self, family: Family, config: dict[str, Any]) -> None:
        self.family, self.config = family, config

    def value(self, key: str, default: Any = None) -> Any:
        name = self.family.keys.get(key, key)
        value = self.config.get(name)
        return self.family.defaults.get(name, default) if value is None else value

    def flag(self, trait: FlagTrait) -> bool:
        return bool(self.value(trait, False)) if isinstance(trait, str) else trait

    def scale(self, trait: ScaleTrait) -> float:
        return self.number(trait, 1.0) if isinstance(trait, str) else trait

    def number(self, key: str, default: float) -> float:
        value = self.value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._damaged(key, value, "a number")
        return float(value)

    def size(self, key: str, default: int | None = None) -> int:
        value = self.value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MAX_SIZE:
            raise self._damaged(key, value, f"a number from 1 to {_MAX_SIZE}")
        return value

    def _damaged(self, key: str, value: Any, expected: str) -> OtterError:
        return OtterError(
            f"config.json: {self.family.keys.get(key, key)} is {value!r}, not {expected}",
            hint="the checkpoint's configuration is damaged, or not a decoder's",
        )


TensorShape = tuple[int, ...]


def has_complete_tensor_list(family: Family) -> bool:
    """Whether the family has no tensors but `expected_tensors` and the head."""
    return family.attention.read_at == family.ffn.read_at == "input"


def expected_tensors(shape: BaseShape) -> Iterator[tuple[str, TensorShape]]:
    """Name and shape of every tensor of the base except the head's weight, which may be tied."""
    family, d = shape.family, shape.hidden
    yield f"{family.embedding}.weight", (shape.vocab, d)
    yield from _norm(shape, family.final_norm)
    if family.head_bias:
        yield f"{family.head}.bias", (shape.vocab,)
    if family.positions:
        yield f"{family.positions.module}.weight", (shape.position_rows, d)
    parts = [*_layer_norms(shape), *_attention(shape), *_ffn(shape)]
    for layer in range(shape.layers):
        for part, tensor_shape in parts:
            yield family.module_name(layer, part), tensor_shape


def _layer_norms(shape: BaseShape) -> Iterator[tuple[str, TensorShape]]:
    blocks = (shape.family.attention, shape.family.ffn)
    # Parallel branches may share a norm.
    for norm in dict.fromkeys(name for block in blocks for name in (block.norm, block.post_norm)):
        if norm:
            yield from _norm(shape, norm)


def _norm(shape: BaseShape, name: str) -> Iterator[tuple[str, TensorShape]]:
    yield f"{name}.weight", (shape.hidden,)
    if shape.family.norm_bias:
        yield f"{name}.bias", (shape.hidden,)


def _attention(shape: BaseShape) -> Iterator[tuple[str, TensorShape]]:
    block = shape.family.attention
    if block.read_at == "output":
        return
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    rows = {block.query: queries, block.key: keys, block.value: keys}
    if block.fused != "apart":
        rows = {block.query: queries + 2 * keys}
    for part, count in rows.items():
        yield from _linear(shape, part, count, shape.hidden, shape.attention_bias)
    yield from _linear(shape, block.out, shape.hidden, queries, shape.out_bias)
    for norm, width in ((block.query_norm, queries), (block.key_norm, keys)):
        if norm:
            yield f"{norm}.weight", (width if block.joint_norm else shape.head_dim,)
    if block.sinks:
        yield block.sinks, (shape.heads,)


def _ffn(shape: BaseShape) -> Iterator[tuple[str, TensorShape]]:
    block = shape.family.ffn
    # Experts may be packed, and layers without experts have other sizes.
    if block.read_at == "output":
        return
    for part in dict.fromkeys((block.gate, block.up)):
        if part:
            rows = shape.ffn * (1 + block.fused)
            yield from _linear(shape, part, rows, shape.hidden, shape.ffn_bias)
    yield from _linear(shape, block.down, shape.hidden, shape.ffn, shape.ffn_bias)


def _linear(
    shape: BaseShape, part: str, out: int, inputs: int, bias: bool
) -> Iterator[tuple[str, TensorShape]]:
    yield f"{part}.weight", (inputs, out) if shape.family.transposed else (out, inputs)
    if bias:
        yield f"{part}.bias", (out,)


def base_parameters(base: Checkpoint, shape: BaseShape) -> int:
    """Parameters in the base's files. Tied embeddings count once, and buffers do not count."""
    family = shape.family
    excluded = {family.head_weight} if shape.tied else set()
    for layer in range(shape.layers):
        for buffer in family.buffers:
            excluded.update(family.stored_names(family.module_name(layer, buffer)))
    return sum(info.count for name, info in base.tensors.items() if name not in excluded)
