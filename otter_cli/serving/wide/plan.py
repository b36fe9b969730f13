"""The wide layout as a plan: one matrix [[W, W^h], [0, W^z]] for each projection of the base.

`WideValues` makes the values of one wide tensor at a time: the base's, the inserted ones, and
zeros between them. `WidePlan` names every tensor of the layout with its shape.
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
    """`count` rows of a product of the base, from row `start` of what it is fused into on, and
    those of the insertion's tensor `mine` that come after them."""

    mine: str
    rows: Array
    start: int
    count: int

    @property
    def stop(self) -> int:
        return self.start + self.count


@dataclass(frozen=True)
class WideValues:
    """Makes one wide tensor at a time. `source` is the base's module, `mine` the insertion's; the
    rows or columns that are added are indices into the insertion's, -1 for zeros."""

    base: Checkpoint
    inserted: ShardedTensors
    plan: Plan

    def embedding(self) -> Array:
        """[E E_z]."""
        own = self._own("embedding.weight", 1.0 / self.plan.shape.embedding_scale)
        table = self.base.read(f"{self.plan.shape.family.embedding}.weight")
        return np.concatenate([table, self._zeros(len(table)) if own is None else own], 1)

    def head(self) -> Array:
        """[W_U ; 0]: a tied head comes apart from its embedding here."""
        family = self.plan.shape.family
        name = family.head_weight
        table = self.base.read(name if name in self.base.tensors else f"{family.embedding}.weight")
        return np.concatenate([table, self._zeros(len(table))], 1)

    def norm(self, source: str, mine: str) -> Array:
        own = self._own(mine)
        ones = np.ones(self.plan.config.hidden, np.float32)
        return np.concatenate([self.base.read(source), ones if own is None else own])

    def head_norm(self, source: str, mine: str, live: Array, heads: int) -> Array:
        """The base's weights for each of its `heads`, then the insertion's where a head lives."""
        weight, own = self.base.read(source), self._own(f"{mine}.weight")
        mixed = weight if own is None else own
        return np.concatenate([np.tile(weight, (heads, 1)), np.where(live[:, None], mixed, 1.0)])

    def out_bias(self, source: str, mine: str) -> Array:
        own = self._own(mine, 1.0 / self.plan.shape.residual_scale)
        zeros = np.zeros(self.plan.config.hidden, np.float32)
        return np.concatenate([self.base.read(source), zeros if own is None else own])

    def input(self, source: str, parts: list[FusedPart]) -> Array:
        """[[W, 0], [W^h, W^z]] as [out, in], one part after the other."""
        weight = self.base.read(f"{source}.weight")
        return np.concatenate([self._input(weight[p.start : p.stop], p) for p in parts])

    def _input(self, weight: Array, part: FusedPart) -> Array:
        live, (kept, width) = part.rows >= 0, weight.shape
        out = np.zeros((kept + len(part.rows), width + self.plan.config.hidden), np.float32)
        out[:kept, :width] = weight
        added = out[kept:]
        of_base, of_stream = (self._own(f"{part.mine}.{name}.weight") for name in "hz")
        if of_base is not None and of_stream is not None:
            added[live, :width] = of_base[part.rows[live]]
            added[live, width:] = of_stream[part.rows[live]]
        elif self.reads_base(part.mine):
            added[live, :width] = weight[part.rows[live]]
        return out

    def bias(self, source: str, parts: list[FusedPart]) -> Array:
        bias = self.base.read(f"{source}.bias")
        return np.concatenate([self._bias(bias[p.start : p.stop], p) for p in parts])

    def _bias(self, bias: Array, part: FusedPart) -> Array:
        own, live = self._own(f"{part.mine}.bias"), part.rows >= 0
        added = np.zeros(len(part.rows), np.float32)
        if own is not None:
            added[live] = own[part.rows[live]]
        elif self.reads_base(part.mine):
            added[live] = bias[part.rows[live]]
        return np.concatenate([bias, added])

    def output(self, source: str, mine: str, columns: Array) -> Array:
        """[[W, 0], [W^h, W^z]] as [out, in]: the inserted units feed z alone."""
        weight = self.base.read(f"{source}.weight")
        rows, wide = weight.shape
        out = np.zeros((rows + self.plan.config.hidden, wide + len(columns)), np.float32)
        out[:rows, :wide] = weight
        # The base multiplies what every branch gives; in the graft that is in the weights.
        undo = 1.0 / self.plan.shape.residual_scale
        of_base, of_stream = (self._own(f"{mine}.{part}.weight", undo) for part in "hz")
        if of_base is not None:
            out[rows:, :wide] = of_base
        if of_stream is not None:
            live = np.flatnonzero(columns >= 0)
            out[rows:, wide + live] = of_stream[:, columns[live]]
        return out

    def reads_base(self, mine: str) -> bool:
        """Whether these heads repeat the base's: its keys and values, in a layer with an
        insertion."""
        config = self.plan.config
        _, layer, _, name = mine.split(".")
        return config.kv == "base" and name in ("key", "value") and int(layer) in config.layers

    def _own(self, name: str, scale: float = 1.0) -> Array | None:
        full = f"otter.{self.plan.config.name}.{name}"
        if full not in self.inserted.tensors:
            return None
        values = self.inserted.read(full)
        return values if scale == 1.0 else values * np.float32(scale)

    def _zeros(self, rows: int) -> Array:
        return np.zeros((rows, self.plan.config.hidden), np.float32)


@dataclass(frozen=True)
class WideTensor:
    """One tensor of the wide layout; `make` reads what it is made of, and only when called."""

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
        """For each key/value head that is added: which inserted one it is, and its query heads.

        The family's ratio of query to key/value heads must hold for all heads alike, so groups
        are filled up with zero heads (-1), and key/value heads with too many queries repeated.
        """
        config, group = self.plan.config, self.plan.shape.group
        share = config.heads // config.kv_heads if config.heads else 0
        found = []
        for kv in range(config.kv_heads if config.heads else 0):
            queries = list(range(kv * share, (kv + 1) * share))
            for start in range(0, share, group):
                part = queries[start : start + group]
                found.append((kv, part + [-1] * (group - len(part))))
        return found

    @property
    def heads(self) -> int:
        return self.plan.shape.heads + len(self.groups) * self.plan.shape.group

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
    def slots(self) -> tuple[WideTensor, ...]:
        return tuple(self._slots())

    def _slots(self) -> Iterator[WideTensor]:
        shape, values = self.plan.shape, self.values
        form, family = (shape.vocab, self.width), shape.family
        yield WideTensor(f"{family.embedding}.weight", form, values.embedding)
        yield WideTensor(f"{family.head}.weight", form, values.head)
        yield self._norm(f"{family.final_norm}.weight", "norm.weight")
        for layer in range(shape.layers):
            yield from self._attention(layer)
            yield from self._ffn(layer)
        for name, info in values.inserted.tensors.items():
            short = name.removeprefix(f"otter.{self.plan.config.name}.")
            if short.startswith("signals."):
                yield WideTensor(f"otter_{short}", info.shape, partial(values.inserted.read, name))

    def _attention(self, layer: int) -> Iterator[WideTensor]:
        shape, block = self.plan.shape, self.plan.shape.family.attention
        here, at = f"layers.{layer}.attention", partial(shape.family.layer, layer)
        c, bias = shape.head_dim, shape.attention_bias
        queries = self._rows([query for _, members in self.groups for query in members])
        start = self.plan.config.kv_start if self.values.reads_base(f"{here}.key") else 0
        keys = self._rows([kv + start for kv, _ in self.groups])
        yield self._norm(f"{at(block.norm)}.weight", f"{here}.norm.weight")
        parts = [FusedPart(f"{here}.query", queries, 0, shape.heads * c)]
        for name in ("key", "value"):
            parts.append(FusedPart(f"{here}.{name}", keys, parts[-1].stop, shape.kv_heads * c))
        yield from self._inputs((block.query, block.key, block.value), layer, parts, bias)
        if block.query_norm:
            yield self._head_norm(at(block.query_norm), f"{here}.query_norm", queries, shape.heads)
            yield self._head_norm(at(block.key_norm), f"{here}.key_norm", keys, shape.kv_heads)
        yield from self._output(
            at(block.out), f"{here}.out", queries, self.heads * c, shape.out_bias
        )

    def _ffn(self, layer: int) -> Iterator[WideTensor]:
        shape, block = self.plan.shape, self.plan.shape.family.ffn
        here, at = f"layers.{layer}.ffn", partial(shape.family.layer, layer)
        units, bias = np.arange(self.plan.config.ffn), shape.ffn_bias
        yield self._norm(f"{at(block.norm)}.weight", f"{here}.norm.weight")
        gate = FusedPart(f"{here}.gate", units, 0, shape.ffn)
        parts = [gate, FusedPart(f"{here}.up", units, gate.stop, shape.ffn)]
        yield from self._inputs((block.gate, block.up), layer, parts, bias)
        yield from self._output(at(block.down), f"{here}.down", units, self.ffn, bias)

    def _norm(self, source: str, mine: str) -> WideTensor:
        return WideTensor(source, (self.width,), partial(self.values.norm, source, mine))

    def _head_norm(self, source: str, mine: str, rows: Array, heads: int) -> WideTensor:
        """One row of weights a head, where the base has one for all of its heads."""
        c, name = self.plan.shape.head_dim, f"{source}.weight"
        make = partial(self.values.head_norm, name, mine, rows.reshape(-1, c)[:, 0] >= 0, heads)
        return WideTensor(name, (heads + len(rows) // c, c), make)

    def _inputs(
        self, modules: tuple[str, ...], layer: int, parts: list[FusedPart], bias: bool
    ) -> Iterator[WideTensor]:
        """One product for each part, or one for all where the base has them fused."""
        if len(set(modules)) == 1:
            yield from self._input(modules[0], layer, parts, bias)
            return
        for module, part in zip(modules, parts, strict=True):
            yield from self._input(module, layer, [replace(part, start=0)], bias)

    def _input(
        self, module: str, layer: int, parts: list[FusedPart], bias: bool
    ) -> Iterator[WideTensor]:
        source = self.plan.shape.family.layer(layer, module)
        total = sum(part.count + len(part.rows) for part in parts)
        make = partial(self.values.input, source, parts)
        yield WideTensor(f"{source}.weight", (total, self.width), make)
        if bias:
            yield WideTensor(f"{source}.bias", (total,), partial(self.values.bias, source, parts))

    def _output(
        self, source: str, mine: str, columns: Array, total: int, bias: bool
    ) -> Iterator[WideTensor]:
        make = partial(self.values.output, source, mine, columns)
        yield WideTensor(f"{source}.weight", (self.width, total), make)
        if bias:
            name = f"{source}.bias"
            yield WideTensor(
                name, (self.width,), partial(self.values.out_bias, name, f"{mine}.bias")
            )

    def _rows(self, heads: list[int]) -> Array:
        """Rows of a projection that belong to `heads`; -1 for those of a zero head."""
        c = self.plan.shape.head_dim
        rows = [np.full(c, -1) if head < 0 else head * c + np.arange(c) for head in heads]
        return np.concatenate(rows) if rows else np.zeros(0, np.int64)
