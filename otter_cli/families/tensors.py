"""The tensors that a base must have by its config.json (names and shapes), and its parameter count.

Mixtures of experts and special attention are listed in part: `has_complete_tensor_list` says which.
For those, transformers itself says which tensors belong to the base (graft/base_check.py).
"""

from __future__ import annotations

from collections.abc import Iterator

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.families.family import Family
from otter_cli.families.shape import BaseShape

TensorShape = tuple[int, ...]


def has_complete_tensor_list(family: Family) -> bool:
    """Whether `expected_tensors` and the head are all the tensors of this family."""
    return family.attention.tap == family.ffn.tap == "input"


def expected_tensors(shape: BaseShape) -> Iterator[tuple[str, TensorShape]]:
    """Every tensor of the base but the head's weight, which may be tied: name and shape."""
    family, d = shape.family, shape.hidden
    yield f"{family.embedding}.weight", (shape.vocab, d)
    yield from _norm(shape, family.final_norm)
    if family.head_bias:
        yield f"{family.head}.bias", (shape.vocab,)
    if family.positions:
        yield f"{family.positions.module}.weight", (shape.positions, d)
    parts = [*_layer_norms(shape), *_attention(shape), *_ffn(shape)]
    for layer in range(shape.layers):
        for part, form in parts:
            yield family.layer(layer, part), form


def _layer_norms(shape: BaseShape) -> Iterator[tuple[str, TensorShape]]:
    blocks = (shape.family.attention, shape.family.ffn)
    # Parallel branches may share their norm.
    for norm in dict.fromkeys(name for block in blocks for name in (block.norm, block.post_norm)):
        if norm:
            yield from _norm(shape, norm)


def _norm(shape: BaseShape, name: str) -> Iterator[tuple[str, TensorShape]]:
    yield f"{name}.weight", (shape.hidden,)
    if shape.family.norm_bias:
        yield f"{name}.bias", (shape.hidden,)


def _attention(shape: BaseShape) -> Iterator[tuple[str, TensorShape]]:
    block = shape.family.attention
    if block.tap == "output":
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
    # Experts may be packed; layers without them have other sizes (`has_complete_tensor_list`).
    if block.tap == "output":
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
    """Parameters of the base by its files: tied embeddings count once, stored masks not at all."""
    family = shape.family
    apart = {family.head_weight} if shape.tied else set()
    for layer in range(shape.layers):
        for buffer in family.buffers:
            apart.update(family.on_disk(family.layer(layer, buffer)))
    return sum(info.count for name, info in base.tensors.items() if name not in apart)
