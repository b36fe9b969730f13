"""Whether config.json and the tensors on disk tell of the same base."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.core.errors import OtterError
from otter_cli.families import BaseShape

Form = tuple[int, ...]
_BLOCK = 16 * 2**20


class Contradiction(NamedTuple):
    """Where tensors are not what config.json says: of which tensor, what, and what to do."""

    tensor: str
    what: str
    hint: str


def check_base(base: Checkpoint, shape: BaseShape) -> None:
    """Raises OtterError where config.json and the tensors on disk contradict each other."""
    for tensor, what, hint in contradictions(base, shape):
        raise OtterError(f"{base.path}: tensor {tensor} {what}", hint=hint)


def contradictions(base: Checkpoint, shape: BaseShape) -> Iterator[Contradiction]:
    """Every tensor that is missing or of another shape, and a head that is tied and yet its own."""
    for name, form in expected_tensors(shape):
        found = next((n for n in shape.family.on_disk(name) if n in base.tensors), None)
        if found is None:
            hint = f"config.json says {shape.layers} layers; are all shards there?"
            yield Contradiction(name, "is missing", hint)
        elif tuple(base.tensors[found].shape) != form:
            what = f"is {list(base.tensors[found].shape)}, config.json says {list(form)}"
            yield Contradiction(found, what, "the configuration belongs to another checkpoint")
    yield from _head(base, shape)


def _head(base: Checkpoint, shape: BaseShape) -> Iterator[Contradiction]:
    """A loader that ties and one that does not would see two different models."""
    family = shape.family
    head = family.head_weight
    if head not in base.tensors:
        if not shape.tied:
            hint = "tie_word_embeddings must be true where the embedding serves as the head"
            yield Contradiction(head, "is missing, and config.json ties it to nothing", hint)
        return
    names = family.on_disk(f"{family.embedding}.weight")
    table = next((name for name in names if name in base.tensors), None)
    if shape.tied and table and not _same_bytes(base, head, table):
        what = f"differs from {table}, to which config.json ties it (tie_word_embeddings)"
        hint = "set tie_word_embeddings to false to keep both, or leave this tensor out"
        yield Contradiction(head, what, hint)


def _same_bytes(base: Checkpoint, one: str, other: str) -> bool:
    first, second = base.tensors[one], base.tensors[other]
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    import numpy as np

    a, b = (np.frombuffer(base.read_raw(name), np.uint8) for name in (one, other))
    return all(
        np.array_equal(a[i : i + _BLOCK], b[i : i + _BLOCK]) for i in range(0, len(a), _BLOCK)
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
