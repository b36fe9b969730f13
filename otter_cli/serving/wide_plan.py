"""The paper's layout as a plan: one matrix [[W, W^h], [0, W^z]] for each projection (METHOD, 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np

from otter_cli.checkpoint.dtypes import Array
from otter_cli.insertion import Plan
from otter_cli.serving.wide_values import Part, WideValues


@dataclass(frozen=True)
class WideSlot:
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
    def slots(self) -> tuple[WideSlot, ...]:
        return tuple(self._slots())

    def _slots(self) -> Iterator[WideSlot]:
        shape, values = self.plan.shape, self.values
        form, family = (shape.vocab, self.width), shape.family
        yield WideSlot(f"{family.embedding}.weight", form, values.embedding)
        yield WideSlot(f"{family.head}.weight", form, values.head)
        yield self._norm(f"{family.final_norm}.weight", "norm.weight")
        for layer in range(shape.layers):
            yield from self._attention(layer)
            yield from self._ffn(layer)
        for name, info in values.inserted.tensors.items():
            short = name.removeprefix(f"otter.{self.plan.config.name}.")
            if short.startswith("signals."):
                yield WideSlot(f"otter_{short}", info.shape, partial(values.inserted.read, name))

    def _attention(self, layer: int) -> Iterator[WideSlot]:
        shape, block = self.plan.shape, self.plan.shape.family.attention
        here, at = f"layers.{layer}.attention", partial(shape.family.layer, layer)
        c, bias = shape.head_dim, shape.attention_bias
        queries = self._rows([query for _, members in self.groups for query in members])
        start = self.plan.config.kv_start if self.values.reads_base(f"{here}.key") else 0
        keys = self._rows([kv + start for kv, _ in self.groups])
        yield self._norm(f"{at(block.norm)}.weight", f"{here}.norm.weight")
        parts = [Part(f"{here}.query", queries, 0, shape.heads * c)]
        for name in ("key", "value"):
            parts.append(Part(f"{here}.{name}", keys, parts[-1].stop, shape.kv_heads * c))
        yield from self._inputs((block.query, block.key, block.value), layer, parts, bias)
        if block.query_norm:
            yield self._head_norm(at(block.query_norm), f"{here}.query_norm", queries, shape.heads)
            yield self._head_norm(at(block.key_norm), f"{here}.key_norm", keys, shape.kv_heads)
        yield from self._output(
            at(block.out), f"{here}.out", queries, self.heads * c, shape.out_bias
        )

    def _ffn(self, layer: int) -> Iterator[WideSlot]:
        shape, block = self.plan.shape, self.plan.shape.family.ffn
        here, at = f"layers.{layer}.ffn", partial(shape.family.layer, layer)
        units, bias = np.arange(self.plan.config.ffn), shape.ffn_bias
        yield self._norm(f"{at(block.norm)}.weight", f"{here}.norm.weight")
        gate = Part(f"{here}.gate", units, 0, shape.ffn)
        parts = [gate, Part(f"{here}.up", units, gate.stop, shape.ffn)]
        yield from self._inputs((block.gate, block.up), layer, parts, bias)
        yield from self._output(at(block.down), f"{here}.down", units, self.ffn, bias)

    def _norm(self, source: str, mine: str) -> WideSlot:
        return WideSlot(source, (self.width,), partial(self.values.norm, source, mine))

    def _head_norm(self, source: str, mine: str, rows: Array, heads: int) -> WideSlot:
        """One row of weights a head, where the base has one for all of its heads."""
        c, name = self.plan.shape.head_dim, f"{source}.weight"
        make = partial(self.values.head_norm, name, mine, rows.reshape(-1, c)[:, 0] >= 0, heads)
        return WideSlot(name, (heads + len(rows) // c, c), make)

    def _inputs(
        self, modules: tuple[str, ...], layer: int, parts: list[Part], bias: bool
    ) -> Iterator[WideSlot]:
        """One product for each part, or one for all where the base has them fused."""
        if len(set(modules)) == 1:
            yield from self._input(modules[0], layer, parts, bias)
            return
        for module, part in zip(modules, parts, strict=True):
            yield from self._input(module, layer, [replace(part, start=0)], bias)

    def _input(self, module: str, layer: int, parts: list[Part], bias: bool) -> Iterator[WideSlot]:
        source = self.plan.shape.family.layer(layer, module)
        total = sum(part.count + len(part.rows) for part in parts)
        make = partial(self.values.input, source, parts)
        yield WideSlot(f"{source}.weight", (total, self.width), make)
        if bias:
            yield WideSlot(f"{source}.bias", (total,), partial(self.values.bias, source, parts))

    def _output(
        self, source: str, mine: str, columns: Array, total: int, bias: bool
    ) -> Iterator[WideSlot]:
        make = partial(self.values.output, source, mine, columns)
        yield WideSlot(f"{source}.weight", (self.width, total), make)
        if bias:
            name = f"{source}.bias"
            yield WideSlot(name, (self.width,), partial(self.values.out_bias, name, f"{mine}.bias"))

    def _rows(self, heads: list[int]) -> Array:
        """Rows of a projection that belong to `heads`; -1 for those of a zero head."""
        c = self.plan.shape.head_dim
        rows = [np.full(c, -1) if head < 0 else head * c + np.arange(c) for head in heads]
        return np.concatenate(rows) if rows else np.zeros(0, np.int64)
