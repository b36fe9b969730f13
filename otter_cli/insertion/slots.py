"""The tensors of an insertion one by one: name, shape, and what a copy of the base takes.

Shapes follow METHOD, 1. A weight is stored as torch.nn.Linear does, [out, in]: `x W^h` is
`.h.weight`, `u W^z` is `.z.weight`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Literal

from otter_cli.families import Attention, FeedForward
from otter_cli.insertion.sources import Index, Source, head_rows, projection_rows
from otter_cli.signals import HEADS

if TYPE_CHECKING:
    from otter_cli.insertion.plan import Plan

Branch = Attention | FeedForward
Role = Literal["matrix", "output", "norm", "bias", "embedding", "signal"]
# What `copy` writes where there is nothing to copy: `units` picks the mirrored ones.
Fill = Literal["zeros", "ones", "normal", "units"]


@dataclass(frozen=True)
class Slot:
    """One tensor. The product of an output is added to z; `source` is what `copy` takes from the
    base, `fill` what it writes where the base has nothing of the kind."""

    name: str
    shape: tuple[int, ...]
    role: Role
    source: Source | None = None
    fill: Fill = "zeros"

    @property
    def count(self) -> int:
        return prod(self.shape)


class Slots:
    """Every slot of a plan, in the order of the stream."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.config, self.shape = plan, plan.config, plan.shape
        self.family, self.units = plan.shape.family, plan.units

    def all(self) -> Iterator[Slot]:
        config, shape, family = self.config, self.shape, self.family
        d, D = shape.hidden, config.hidden
        if D and config.embedding == "table":
            source = self._source(family.embedding, columns=self.units, scale=shape.embedding_scale)
            yield Slot("embedding.weight", (shape.vocab, D), "embedding", source)
            if family.positions:
                source = self._source(family.positions.module, columns=self.units)
                yield Slot("positions.weight", (shape.positions, D), "embedding", source)
        for layer in config.layers:
            yield from self._attention(f"layers.{layer}.attention", layer)
            yield from self._ffn(f"layers.{layer}.ffn", layer)
        if D:
            yield from self._norm("norm", family.final_norm)
        for signal in config.signals:
            head = HEADS[signal.kind]
            for name, form in head.shapes(signal, d, D, shape.vocab).items():
                fill: Fill = "normal" if name in head.drawn else "zeros"
                yield Slot(f"signals.{signal.name}.{name}", form, "signal", fill=fill)

    def _attention(self, base: str, layer: int) -> Iterator[Slot]:
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
                names = self.family.on_disk(self._at(layer, block.sinks))
                source = Source(names, self.plan.head_units)
                yield Slot(f"{base}.sinks", (config.heads,), "bias", source)
        wide, thin = shape.heads * c, config.heads * c
        yield from self._output(f"{base}.out", layer, block, wide, thin, shape.out_bias)
        yield from self._post_norm(base, layer, block)

    def _projections(self) -> list[tuple[str, str, Index]]:
        block, plan = self.family.attention, self.plan
        own = [("key", block.key, plan.kv_units), ("value", block.value, plan.kv_units)]
        return [("query", block.query, plan.head_units), *(own if self.config.kv == "own" else [])]

    def _head_norms(self, base: str, layer: int) -> Iterator[Slot]:
        block, c = self.family.attention, self.shape.head_dim
        parts = {"query": block.query_norm, "key": block.key_norm}
        for name, _, heads in self._projections():
            if part := parts.get(name):
                rows = head_rows(heads, c) if block.joint_norm else range(c)
                place, offset = self._at(layer, part), self.family.norm_offset
                source = self._source(place, rows, offset=offset)
                yield Slot(f"{base}.{name}_norm.weight", (len(rows),), "norm", source)

    def _ffn(self, base: str, layer: int) -> Iterator[Slot]:
        config, shape, block = self.config, self.shape, self.family.ffn
        if config.ffn:
            yield from self._norm(f"{base}.norm", self._at(layer, block.norm))
            pairs = [(block.gate, block.up), *block.elsewhere]
            for which, name in enumerate(("gate", "up")):
                if name == "gate" and block.plain:
                    continue
                before = shape.ffn * which * block.fused
                rows = [unit + before for unit in self.plan.ffn_units]
                places = tuple(self._at(layer, pair[which]) for pair in pairs if pair[which])
                yield from self._input(f"{base}.{name}", places, rows, shape.ffn_bias)
        yield from self._output(f"{base}.down", layer, block, shape.ffn, config.ffn, shape.ffn_bias)
        yield from self._post_norm(base, layer, block)

    def _norm(self, name: str, place: str) -> Iterator[Slot]:
        """The stream's norm; of ones where the base reads h without one."""
        form, offset = (self.config.hidden,), self.family.norm_offset
        source = self._source(place, self.units, offset=offset) if place else None
        yield Slot(f"{name}.weight", form, "norm", source, "ones")
        if self.family.norm_bias:
            yield Slot(f"{name}.bias", form, "bias", self._source(place, self.units, kind="bias"))

    def _post_norm(self, base: str, layer: int, block: Branch) -> Iterator[Slot]:
        if block.post_norm:
            place, offset = self._at(layer, block.post_norm), self.family.norm_offset
            source = self._source(place, self.units, offset=offset)
            yield Slot(f"{base}.post_norm.weight", (self.config.hidden,), "norm", source)

    def _input(
        self, name: str, place: str | tuple[str, ...], rows: Index, bias: bool, scale: float = 1.0
    ) -> Iterator[Slot]:
        """`x W^h + u W^z (+ b)`: W^h mirrors the base's rows, W^z starts at zero, else x would
        count twice."""
        source = self._product(place, rows, scale)
        yield Slot(f"{name}.h.weight", (len(rows), self.shape.hidden), "matrix", source, "normal")
        yield Slot(f"{name}.z.weight", (len(rows), self.config.hidden), "matrix")
        if bias:
            source = self._source(place, rows, kind="bias", scale=scale)
            yield Slot(f"{name}.bias", (len(rows),), "bias", source)

    def _output(
        self, name: str, layer: int, block: Branch, wide: int, thin: int, bias: bool
    ) -> Iterator[Slot]:
        """`z += a W^h + a' W^z (+ b)`, a of width `wide`; or o for a, all that the branch gives."""
        D, place, scale = self.config.hidden, self._at(layer, block.end), self.shape.residual_scale
        if block.tap == "output":
            yield Slot(f"{name}.h.weight", (D, self.shape.hidden), "output", fill="units")
        else:
            source = self._product(place, self.units, scale)
            yield Slot(f"{name}.h.weight", (D, wide), "output", source)
        if thin:
            yield Slot(f"{name}.z.weight", (D, thin), "output")
        if bias and block.tap == "input":
            source = self._source(place, self.units, kind="bias", scale=scale)
            yield Slot(f"{name}.bias", (D,), "bias", source)

    def _at(self, layer: int, part: str) -> str:
        return self.family.layer(layer, part) if part else ""

    def _product(self, place: str | tuple[str, ...], rows: Index, scale: float) -> Source:
        return self._source(place, rows, scale=scale, transposed=self.family.transposed)

    def _source(
        self,
        place: str | tuple[str, ...],
        rows: Index | None = None,
        columns: Index | None = None,
        kind: str = "weight",
        **how: Any,
    ) -> Source:
        places = (place,) if isinstance(place, str) else place
        names = tuple(n for one in places for n in self.family.on_disk(f"{one}.{kind}"))
        return Source(names, rows, columns, **how)
