"""The plan of a graft: all tensors that a configuration inserts into a base of a given shape.

`Plan` picks the units of the base that the stream mirrors at first. `InsertedTensors` lists the
tensors in the order of the stream. In a product `x W^h + u W^z`, W^h is stored as `.h.weight` and
W^z as `.z.weight`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from otter_cli.checkpoint.folder import MANIFEST, Checkpoint
from otter_cli.core.process import derive_seed
from otter_cli.families.family import Attention, FeedForward
from otter_cli.families.shape import BaseShape
from otter_cli.graft.config import InsertionConfig
from otter_cli.graft.tensors import (
    CopySource,
    FillRule,
    Indices,
    InsertedTensor,
    head_rows,
    projection_rows,
)
from otter_cli.signals.heads import HEADS

FamilyBranch = Attention | FeedForward

if TYPE_CHECKING:
    import numpy as np


class InsertedTensors:
    """Every slot of a plan, in the order of the stream."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.config, self.shape = plan, plan.config, plan.shape
        self.family, self.units = plan.shape.family, plan.units

    def all(self) -> Iterator[InsertedTensor]:
        config, shape, family = self.config, self.shape, self.family
        d, D = shape.hidden, config.hidden
        if D and config.embedding == "table":
            source = self._source(family.embedding, columns=self.units, scale=shape.embedding_scale)
            yield InsertedTensor("embedding.weight", (shape.vocab, D), "embedding", source)
            if family.positions:
                source = self._source(family.positions.module, columns=self.units)
                yield InsertedTensor(
                    "positions.weight", (shape.position_rows, D), "embedding", source
                )
        for layer in config.layers:
            yield from self._attention(f"layers.{layer}.attention", layer)
            yield from self._ffn(f"layers.{layer}.ffn", layer)
        if D:
            yield from self._norm("norm", family.final_norm)
        for signal in config.signals:
            head = HEADS[signal.kind]
            for name, form in head.shapes(signal, d, D, shape.vocab).items():
                fill: FillRule = "normal" if name in head.random_tensors else "zeros"
                yield InsertedTensor(f"signals.{signal.name}.{name}", form, "signal", fill=fill)

    def _attention(self, base: str, layer: int) -> Iterator[InsertedTensor]:
        config, shape, block = self.config, self.shape, self.family.attention
        c = shape.head_dim
        if config.heads:
            yield from self._norm(f"{base}.norm", self._at(layer, block.norm))
            for name, part, heads in self._projections():
                rows = projection_rows(shape, name, heads)
                scale = c**-0.5 if block.scaled_query and name == "query" else 1.0
                place = self._at(layer, part)
                yield from self._input(f"{base}.{name}", place, rows, shape.attention_bias, scale)
            yield from self._head_norms(base, layer)
            if block.sinks:
                names = self.family.stored_names(self._at(layer, block.sinks))
                source = CopySource(names, self.plan.head_units)
                yield InsertedTensor(f"{base}.sinks", (config.heads,), "bias", source)
        wide, thin = shape.heads * c, config.heads * c
        yield from self._output(f"{base}.out", layer, block, wide, thin, shape.out_bias)
        yield from self._post_norm(base, layer, block)

    def _projections(self) -> list[tuple[str, str, Indices]]:
        block, plan = self.family.attention, self.plan
        own = [("key", block.key, plan.kv_units), ("value", block.value, plan.kv_units)]
        return [("query", block.query, plan.head_units), *(own if self.config.kv == "own" else [])]

    def _head_norms(self, base: str, layer: int) -> Iterator[InsertedTensor]:
        block, c = self.family.attention, self.shape.head_dim
        parts = {"query": block.query_norm, "key": block.key_norm}
        for name, _, heads in self._projections():
            if part := parts.get(name):
                rows = head_rows(heads, c) if block.joint_norm else range(c)
                place, offset = self._at(layer, part), self.family.norm_offset
                source = self._source(place, rows, offset=offset)
                yield InsertedTensor(f"{base}.{name}_norm.weight", (len(rows),), "norm", source)

    def _ffn(self, base: str, layer: int) -> Iterator[InsertedTensor]:
        config, shape, block = self.config, self.shape, self.family.ffn
        if config.ffn:
            yield from self._norm(f"{base}.norm", self._at(layer, block.norm))
            pairs = [(block.gate, block.up), *block.alternatives]
            for which, name in enumerate(("gate", "up")):
                if name == "gate" and block.ungated:
                    continue
                before = shape.ffn * which * block.fused
                rows = [unit + before for unit in self.plan.ffn_units]
                places = tuple(self._at(layer, pair[which]) for pair in pairs if pair[which])
                yield from self._input(f"{base}.{name}", places, rows, shape.ffn_bias)
        yield from self._output(f"{base}.down", layer, block, shape.ffn, config.ffn, shape.ffn_bias)
        yield from self._post_norm(base, layer, block)

    def _norm(self, name: str, place: str) -> Iterator[InsertedTensor]:
        """The stream's norm; of ones where the base reads h without one."""
        form, offset = (self.config.hidden,), self.family.norm_offset
        source = self._source(place, self.units, offset=offset) if place else None
        yield InsertedTensor(f"{name}.weight", form, "norm", source, "ones")
        if self.family.norm_bias:
            yield InsertedTensor(
                f"{name}.bias", form, "bias", self._source(place, self.units, kind="bias")
            )

    def _post_norm(self, base: str, layer: int, block: FamilyBranch) -> Iterator[InsertedTensor]:
        if block.post_norm:
            place, offset = self._at(layer, block.post_norm), self.family.norm_offset
            source = self._source(place, self.units, offset=offset)
            yield InsertedTensor(f"{base}.post_norm.weight", (self.config.hidden,), "norm", source)

    def _input(
        self, name: str, place: str | tuple[str, ...], rows: Indices, bias: bool, scale: float = 1.0
    ) -> Iterator[InsertedTensor]:
        """`x W^h + u W^z (+ b)`: W^h mirrors the base's rows, W^z starts at zero, else x would
        count twice."""
        source = self._product(place, rows, scale)
        yield InsertedTensor(
            f"{name}.h.weight", (len(rows), self.shape.hidden), "matrix", source, "normal"
        )
        yield InsertedTensor(f"{name}.z.weight", (len(rows), self.config.hidden), "matrix")
        if bias:
            source = self._source(place, rows, kind="bias", scale=scale)
            yield InsertedTensor(f"{name}.bias", (len(rows),), "bias", source)

    def _output(
        self, name: str, layer: int, block: FamilyBranch, wide: int, thin: int, bias: bool
    ) -> Iterator[InsertedTensor]:
        """`z += a W^h + a' W^z (+ b)`, a of width `wide`; or o for a, all that the branch gives."""
        D, place, scale = (
            self.config.hidden,
            self._at(layer, block.last_linear),
            self.shape.residual_scale,
        )
        if block.read_at == "output":
            yield InsertedTensor(f"{name}.h.weight", (D, self.shape.hidden), "output", fill="units")
        else:
            source = self._product(place, self.units, scale)
            yield InsertedTensor(f"{name}.h.weight", (D, wide), "output", source)
        if thin:
            yield InsertedTensor(f"{name}.z.weight", (D, thin), "output")
        if bias and block.read_at == "input":
            source = self._source(place, self.units, kind="bias", scale=scale)
            yield InsertedTensor(f"{name}.bias", (D,), "bias", source)

    def _at(self, layer: int, part: str) -> str:
        return self.family.module_name(layer, part) if part else ""

    def _product(self, place: str | tuple[str, ...], rows: Indices, scale: float) -> CopySource:
        return self._source(place, rows, scale=scale, transposed=self.family.transposed)

    def _source(
        self,
        place: str | tuple[str, ...],
        rows: Indices | None = None,
        columns: Indices | None = None,
        kind: str = "weight",
        **how: Any,
    ) -> CopySource:
        places = (place,) if isinstance(place, str) else place
        names = tuple(n for one in places for n in self.family.stored_names(f"{one}.{kind}"))
        return CopySource(names, rows, columns, **how)


@dataclass(frozen=True)
class Plan:
    """The tensors that `config` inserts into a base of `shape`."""

    config: InsertionConfig
    shape: BaseShape

    def __post_init__(self) -> None:
        # `resolve` has checked what options say; this is for what a file says.
        self.config.check(self.shape, f"{MANIFEST}: insertion {self.config.name!r}: ")

    @cached_property
    def slots(self) -> tuple[InsertedTensor, ...]:
        prefix = f"otter.{self.config.name}."
        return tuple(replace(slot, name=prefix + slot.name) for slot in InsertedTensors(self).all())

    @cached_property
    def units(self) -> Indices:
        """Hidden units S of the base that the stream mirrors at first."""
        return evenly_spaced(self.config.hidden, self.shape.hidden)

    @cached_property
    def kv_units(self) -> Indices:
        """The base's key/value head behind each inserted key/value head."""
        if self.config.kv == "base":
            return range(self.config.kv_start, self.config.kv_start + self.config.kv_heads)
        return evenly_spaced(self.config.kv_heads, self.shape.kv_heads)

    @cached_property
    def head_units(self) -> Indices:
        """The base's query head behind each inserted query head: one that reads the same key/value
        head."""
        if not self.config.heads:
            return []
        share = self.config.heads // self.config.kv_heads
        group = self.shape.queries_per_kv_head
        return [unit * group + head % group for unit in self.kv_units for head in range(share)]

    @cached_property
    def ffn_units(self) -> Indices:
        return evenly_spaced(self.config.ffn, self.shape.ffn)

    @property
    def parameters(self) -> int:
        return sum(slot.count for slot in self.slots)

    @property
    def stored_bytes(self) -> int:
        return self.parameters * (4 if self.config.dtype == "F32" else 2)

    def cache_bytes_per_token(self, itemsize: int = 4) -> int:
        """Growth of the KV cache, in bytes per token and sequence; zero with the base's keys and
        values."""
        own = self.config.kv_heads if self.config.kv == "own" else 0
        return 2 * own * self.shape.head_dim * len(self.config.layers) * itemsize


def evenly_spaced(count: int, total: int) -> Indices:
    """`count` of `total` indices, evenly spaced and distinct where count <= total."""
    return [index * total // count for index in range(count)]


STANDARD_DEVIATION = 0.02


def initial_value(slot: InsertedTensor, plan: Plan, base: Checkpoint) -> np.ndarray:
    """First value of one tensor, float32. Depends on the seed and the tensor's name only, never on
    the order."""
    import numpy as np

    scheme = plan.config.init
    if slot.role == "signal" and slot.fill == "zeros":
        # A new signal reads zero until trained, whatever the scheme.
        return np.zeros(slot.shape, np.float32)
    if slot.role == "norm" and scheme != "copy":
        return np.ones(slot.shape, np.float32)
    if slot.role == "bias" and scheme != "copy":
        return np.zeros(slot.shape, np.float32)
    random = np.random.default_rng(derive_seed("initialise", plan.config.seed, slot.name))
    if slot.role == "signal":
        return _normal_value(slot, random)
    if scheme == "copy":
        return _copied_value(slot, plan, base, random)
    if scheme == "zero-output" and slot.role == "output":
        return np.zeros(slot.shape, np.float32)
    if scheme == "random":
        bound = 1.0 / np.sqrt(slot.shape[-1])
        return random.uniform(-bound, bound, slot.shape).astype(np.float32)
    return _normal_value(slot, random)


def _copied_value(
    slot: InsertedTensor, plan: Plan, base: Checkpoint, random: np.random.Generator
) -> np.ndarray:
    import numpy as np

    name = slot.source.find(base) if slot.source else None
    if slot.source and name:
        return slot.source.read(name, base)
    if slot.fill == "normal":
        return _normal_value(slot, random)
    if slot.fill == "units":
        picked = np.zeros(slot.shape, np.float32)
        picked[np.arange(len(plan.units)), np.array(plan.units, np.int64)] = (
            plan.shape.residual_scale
        )
        return picked
    return np.full(slot.shape, slot.fill == "ones", np.float32)


def _normal_value(slot: InsertedTensor, random: np.random.Generator) -> np.ndarray:
    import numpy as np

    return random.normal(0.0, STANDARD_DEVIATION, slot.shape).astype(np.float32)
