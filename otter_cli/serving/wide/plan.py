"""The wide layout as a plan: one matrix [[W, W^h], [0, W^z]] for each projection of the base.

See docs/method.md, "Additive and wide layouts". `WideValues` makes the values of one wide tensor at
a time: the base's, the inserted ones, and zeros between them. `WidePlan` names every tensor of the
layout with its shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np

from otter_cli.checkpoint.dtypes import Array
from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.checkpoint.safetensors_reader import ShardedTensors
from otter_cli.graft.plan import Plan


@dataclass(frozen=True)
class FusedPart:
    """A part of a base projection, and the inserted rows that follow it in the wide layout. The
    part has `count` rows of the base's weight from row `start` on. `rows` are rows of the
    insertion's projection `inserted`; -1 is a row of zeros."""

    inserted: str
    rows: Array
    start: int
    count: int

    @property
    def stop(self) -> int:
        return self.start + self.count


@dataclass(frozen=True)
class WideValues:
    """Makes one wide tensor at a time. `source` names a tensor or module of the base, `inserted`
    one of the insertion. Added rows and columns are indices into the insertion's tensor; -1 stands
    for zeros."""

    base: Checkpoint
    insertion: ShardedTensors
    plan: Plan

    def embedding(self) -> Array:
        """[E E_z]."""
        own = self._inserted("embedding.weight", 1.0 / self.plan.shape.embedding_scale)
        table = self.base.read(f"{self.plan.shape.family.embedding}.weight")
        return np.concatenate([table, self._zeros(len(table)) if own is None else own], 1)

    def head(self) -> Array:
        """[W_U ; 0]: a tied head becomes a tensor of its own."""
        family = self.plan.shape.family
        name = family.head_weight
        table = self.base.read(name if name in self.base.tensors else f"{family.embedding}.weight")
        return np.concatenate([table, self._zeros(len(table))], 1)

    def vector(self, source: str, inserted: str, default: float, scale: float = 1.0) -> Array:
        """A norm's weights, or a bias of the residual stream: the base's, then the insertion's."""
        own = self._inserted(inserted, scale)
        defaults = np.full(self.plan.config.hidden, default, np.float32)
        return np.concatenate([self.base.read(source), defaults if own is None else own])

    def head_norm(self, source: str, inserted: str, heads: int, live: Array) -> Array:
        """The base's weights for each of its `heads`, then the insertion's for each `live` head."""
        weight, own = self.base.read(source), self._inserted(f"{inserted}.weight")
        added = weight if own is None else own
        return np.concatenate([np.tile(weight, (heads, 1)), np.where(live[:, None], added, 1.0)])

    def input_weight(self, source: str, parts: list[FusedPart]) -> Array:
        """[[W, 0], [W^h, W^z]] as [out, in], one part after the other."""
        weight = self.base.read(f"{source}.weight")
        return np.concatenate([self._input_part(weight[p.start : p.stop], p) for p in parts])

    def _input_part(self, weight: Array, part: FusedPart) -> Array:
        live, (rows, width) = part.rows >= 0, weight.shape
        out = np.zeros((rows + len(part.rows), width + self.plan.config.hidden), np.float32)
        out[:rows, :width] = weight
        added = out[rows:]
        of_base, of_stream = (self._inserted(f"{part.inserted}.{name}.weight") for name in "hz")
        if of_base is not None and of_stream is not None:
            added[live, :width] = of_base[part.rows[live]]
            added[live, width:] = of_stream[part.rows[live]]
        elif self.reads_base(part.inserted):
            added[live, :width] = weight[part.rows[live]]
        return out

    def input_bias(self, source: str, parts: list[FusedPart]) -> Array:
        bias = self.base.read(f"{source}.bias")
        return np.concatenate([self._bias_part(bias[p.start : p.stop], p) for p in parts])

    def _bias_part(self, bias: Array, part: FusedPart) -> Array:
        own, live = self._inserted(f"{part.inserted}.bias"), part.rows >= 0
        added = np.zeros(len(part.rows), np.float32)
        if own is not None:
            added[live] = own[part.rows[live]]
        elif self.reads_base(part.inserted):
            added[live] = bias[part.rows[live]]
        return np.concatenate([bias, added])

    def output_weight(self, source: str, inserted: str, columns: Array) -> Array:
        """[[W, 0], [W^h, W^z]] as [out, in]: the inserted units feed z alone."""
        weight = self.base.read(f"{source}.weight")
        rows, width = weight.shape
        out = np.zeros((rows + self.plan.config.hidden, width + len(columns)), np.float32)
        out[:rows, :width] = weight
        # The base scales each branch's output; the graft has that scale in its weights.
        undo = 1.0 / self.plan.shape.residual_scale
        of_base, of_stream = (self._inserted(f"{inserted}.{part}.weight", undo) for part in "hz")
        if of_base is not None:
            out[rows:, :width] = of_base
        if of_stream is not None:
            live = np.flatnonzero(columns >= 0)
            out[rows:, width + live] = of_stream[:, columns[live]]
        return out

    def reads_base(self, inserted: str) -> bool:
        """Whether a projection repeats the base's keys or values, which an insertion with
        `kv: base` reads in its layers."""
        config = self.plan.config
        _, layer, _, name = inserted.split(".")
        return config.kv == "base" and name in ("key", "value") and int(layer) in config.layers

    def _inserted(self, name: str, scale: float = 1.0) -> Array | None:
        full = f"otter.{self.plan.config.name}.{name}"
        if full not in self.insertion.tensors:
            return None
        values = self.insertion.read(full)
        return values if scale == 1.0 else values * np.float32(scale)

    def _zeros(self, rows: int) -> Array:
        return np.zeros((rows, self.plan.config.hidden), np.float32)


@dataclass(frozen=True)
class WideTensor:
    """One tensor of the wide layout; `make` reads its parts when it is called."""

    name: str
    shape: tuple[int, ...]
    make: Callable[[], Array]


@dataclass(frozen=True)
class WidePlan:
    """Every tensor of the wide layout."""

    values: WideValues

    @property
    def plan(self) -> Plan:
        return self.values.plan

    @property
    def width(self) -> int:
        return self.plan.shape.hidden + self.plan.config.hidden

    @cached_property
    def groups(self) -> list[tuple[int, list[int]]]:
        """For each added key/value head: the inserted head that it is, and its query heads. The
        family's ratio of query to key/value heads must hold for all heads alike. So groups are
        filled with zero heads (-1), and key/value heads with too many queries are repeated."""
        config, group = self.plan.config, self.plan.shape.queries_per_kv_head
        share = config.heads // config.kv_heads if config.heads else 0
        groups = []
        for kv in range(config.kv_heads if config.heads else 0):
            queries = list(range(kv * share, (kv + 1) * share))
            for start in range(0, share, group):
                part = queries[start : start + group]
                groups.append((kv, part + [-1] * (group - len(part))))
        return groups

    @property
    def heads(self) -> int:
        return self.plan.shape.heads + len(self.groups) * self.plan.shape.queries_per_kv_head

    @property
    def kv_heads(self) -> int:
        return self.plan.shape.kv_heads + len(self.groups)

    @property
    def ffn(self) -> int:
        return self.plan.shape.ffn + self.plan.config.ffn

    @property
    def zero_heads(self) -> int:
        return sum(query < 0 for _, queries in self.groups for query in queries)

    @cached_property
    def tensors(self) -> tuple[WideTensor, ...]:
        return tuple(self._tensors())

    def _tensors(self) -> Iterator[WideTensor]:
        shape, values = self.plan.shape, self.values
        table, family = (shape.vocab, self.width), shape.family
        yield WideTensor(f"{family.embedding}.weight", table, values.embedding)
        yield WideTensor(f"{family.head}.weight", table, values.head)
        yield self._norm(f"{family.final_norm}.weight", "norm.weight")
        for layer in range(shape.layers):
            yield from self._attention(layer)
            yield from self._ffn(layer)
        for name, info in values.insertion.tensors.items():
            short = name.removeprefix(f"otter.{self.plan.config.name}.")
            if short.startswith("signals."):
                read = partial(values.insertion.read, name)
                yield WideTensor(f"otter_{short}", info.shape, read)

    def _attention(self, layer: int) -> Iterator[WideTensor]:
        shape, block = self.plan.shape, self.plan.shape.family.attention
        prefix, name_of = f"layers.{layer}.attention", partial(shape.family.module_name, layer)
        c, bias = shape.head_dim, shape.attention_bias
        queries = self._head_rows([query for _, members in self.groups for query in members])
        start = self.plan.config.kv_start if self.values.reads_base(f"{prefix}.key") else 0
        keys = self._head_rows([kv + start for kv, _ in self.groups])
        yield self._norm(f"{name_of(block.norm)}.weight", f"{prefix}.norm.weight")
        parts = [FusedPart(f"{prefix}.query", queries, 0, shape.heads * c)]
        for name in ("key", "value"):
            parts.append(FusedPart(f"{prefix}.{name}", keys, parts[-1].stop, shape.kv_heads * c))
        yield from self._inputs((block.query, block.key, block.value), layer, parts, bias)
        norms = (
            (block.query_norm, "query_norm", shape.heads, queries),
            (block.key_norm, "key_norm", shape.kv_heads, keys),
        )
        for module, own, heads, rows in norms if block.query_norm else ():
            # One row of weights a head, where the base has one row for all of its heads.
            name, live = f"{name_of(module)}.weight", rows.reshape(-1, c)[:, 0] >= 0
            make = partial(self.values.head_norm, name, f"{prefix}.{own}", heads, live)
            yield WideTensor(name, (heads + len(live), c), make)
        width = self.heads * c
        yield from self._output(name_of(block.out), f"{prefix}.out", queries, width, shape.out_bias)

    def _ffn(self, layer: int) -> Iterator[WideTensor]:
        shape, block = self.plan.shape, self.plan.shape.family.ffn
        prefix, name_of = f"layers.{layer}.ffn", partial(shape.family.module_name, layer)
        units, bias = np.arange(self.plan.config.ffn), shape.ffn_bias
        yield self._norm(f"{name_of(block.norm)}.weight", f"{prefix}.norm.weight")
        gate = FusedPart(f"{prefix}.gate", units, 0, shape.ffn)
        parts = [gate, FusedPart(f"{prefix}.up", units, gate.stop, shape.ffn)]
        yield from self._inputs((block.gate, block.up), layer, parts, bias)
        yield from self._output(name_of(block.down), f"{prefix}.down", units, self.ffn, bias)

    def _norm(self, source: str, inserted: str) -> WideTensor:
        return WideTensor(source, (self.width,), partial(self.values.vector, source, inserted, 1.0))

    def _inputs(
        self, modules: tuple[str, ...], layer: int, parts: list[FusedPart], bias: bool
    ) -> Iterator[WideTensor]:
        """One projection for each part, or one for all parts where the base has them fused."""
        if len(set(modules)) == 1:
            projections = [(modules[0], parts)]
        else:
            pairs = zip(modules, parts, strict=True)
            projections = [(module, [replace(part, start=0)]) for module, part in pairs]
        for module, fused in projections:
            source = self.plan.shape.family.module_name(layer, module)
            rows = sum(part.count + len(part.rows) for part in fused)
            make = partial(self.values.input_weight, source, fused)
            yield WideTensor(f"{source}.weight", (rows, self.width), make)
            if bias:
                make = partial(self.values.input_bias, source, fused)
                yield WideTensor(f"{source}.bias", (rows,), make)

    def _output(
        self, source: str, inserted: str, columns: Array, width: int, bias: bool
    ) -> Iterator[WideTensor]:
        make = partial(self.values.output_weight, source, inserted, columns)
        yield WideTensor(f"{source}.weight", (self.width, width), make)
        if bias:
            name, undo = f"{source}.bias", 1.0 / self.plan.shape.residual_scale
            make = partial(self.values.vector, name, f"{inserted}.bias", 0.0, undo)
            yield WideTensor(name, (self.width,), make)

    def _head_rows(self, heads: list[int]) -> Array:
        """Rows of a projection that belong to `heads`; -1 for those of a zero head."""
        c = self.plan.shape.head_dim
        rows = [np.full(c, -1) if head < 0 else head * c + np.arange(c) for head in heads]
        return np.concatenate(rows) if rows else np.zeros(0, np.int64)
