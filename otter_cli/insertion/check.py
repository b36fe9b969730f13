"""Whether config.json and the tensors on disk tell of the same base."""

from __future__ import annotations

from collections.abc import Iterator

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.core.errors import OtterError
from otter_cli.families import BaseShape
from otter_cli.insertion.plan import Plan

Form = tuple[int, ...]


def check_base(base: Checkpoint, plan: Plan) -> None:
    """Raises OtterError where config.json and the tensors on disk contradict each other."""
    shape = plan.shape
    for name, form in expected_tensors(shape):
        found = next((n for n in shape.family.on_disk(name) if n in base.tensors), None)
        if found is None:
            raise OtterError(
                f"{base.path}: tensor {name} is missing",
                hint=f"config.json says {shape.layers} layers; are all shards there?",
            )
        if tuple(base.tensors[found].shape) != form:
            raise OtterError(
                f"{base.path}: tensor {found} is {list(base.tensors[found].shape)}, "
                f"config.json says {list(form)}",
                hint="the configuration belongs to another checkpoint",
            )


def expected_tensors(shape: BaseShape) -> Iterator[tuple[str, Form]]:
    """Every tensor that an insertion reads of the base, or that its sizes follow from."""
    family, d = shape.family, shape.hidden
    yield f"{family.embedding}.weight", (shape.vocab, d)
    yield f"{family.final_norm}.weight", (d,)
    if family.positions:
        yield f"{family.positions.module}.weight", (shape.positions, d)
    for layer in range(shape.layers):
        for part, form in (*_norms(shape), *_attention(shape), *_ffn(shape)):
            yield f"{family.layer(layer, part)}.weight", form


def _norms(shape: BaseShape) -> Iterator[tuple[str, Form]]:
    for block in (shape.family.attention, shape.family.ffn):
        for norm in (block.norm, block.post_norm):
            if norm:
                yield norm, (shape.hidden,)


def _attention(shape: BaseShape) -> Iterator[tuple[str, Form]]:
    block = shape.family.attention
    if block.tap == "output":
        return
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    rows = {block.query: queries, block.key: keys, block.value: keys}
    if block.fused != "apart":
        rows = {block.query: queries + 2 * keys}
    for part, count in rows.items():
        yield part, _stored(shape, count, shape.hidden)
    yield block.out, _stored(shape, shape.hidden, queries)


def _ffn(shape: BaseShape) -> Iterator[tuple[str, Form]]:
    block = shape.family.ffn
    # Experts may be packed, and layers without them have other sizes: strict loading sees to both.
    if block.tap == "output":
        return
    for part in {block.gate, block.up} - {""}:
        yield part, _stored(shape, shape.ffn * (1 + block.fused), shape.hidden)
    yield block.down, _stored(shape, shape.hidden, shape.ffn)


def _stored(shape: BaseShape, out: int, inputs: int) -> Form:
    return (inputs, out) if shape.family.transposed else (out, inputs)
