"""Every tensor of an insertion, by name and shape, and where a copy of the base would come from.

Shapes follow METHOD, 1. A weight is stored as torch.nn.Linear does, [out, in]: `x W^h` is
`.h.weight`, `u W^z` is `.z.weight`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from otter_cli.families import Attention, BaseShape, FeedForward
from otter_cli.insertion.config import InsertionConfig
from otter_cli.insertion.sources import Index, Source, head_rows, projection_rows
from otter_cli.signals import HEADS

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
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class Plan:
    """The tensors that `config` inserts into a base of `shape`."""

    config: InsertionConfig
    shape: BaseShape

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        prefix = f"otter.{self.config.name}."
        return tuple(replace(slot, name=prefix + slot.name) for slot in self._slots())

    @cached_property
    def units(self) -> Index:
        """Hidden units S of the base that the stream mirrors at first."""
        return spread(self.config.hidden, self.shape.hidden)

    @cached_property
    def kv_units(self) -> Index:
        """The base's key/value head behind each inserted key/value head."""
        if self.config.kv == "base":
            return np.arange(self.config.kv_start, self.config.kv_start + self.config.kv_heads)
        return spread(self.config.kv_heads, self.shape.kv_heads)

    @cached_property
    def head_units(self) -> Index:
        """The base's query head behind each inserted query head: one that reads the same key/value
        head."""
        if not self.config.heads:
            return np.zeros(0, np.int64)
        share = self.config.heads // self.config.kv_heads
        within = np.arange(share) % self.shape.group
        return (self.kv_units[:, None] * self.shape.group + within).reshape(-1)

    @cached_property
    def ffn_units(self) -> Index:
        return spread(self.config.ffn, self.shape.ffn)

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

    def _slots(self) -> Iterator[Slot]:
        config, shape, family = self.config, self.shape, self.shape.family
        d, D = shape.hidden, config.hidden
        if D and config.embedding == "table":
            of_base = self._source(family.embedding, columns=self.units)
            scaled = replace(of_base, scale=shape.embedding_scale)
            yield Slot("embedding.weight", (shape.vocab, D), "embedding", scaled)
            if family.positions:
                of_base = self._source(family.positions.module, columns=self.units)
                yield Slot("positions.weight", (shape.positions, D), "embedding", of_base)
        for layer in config.layers:
            yield from self._attention(layer)
            yield from self._ffn(layer)
        if D:
            yield from self._norm("norm", family.final_norm)
        for signal in config.signals:
            for name, form in HEADS[signal.kind].shapes(signal, d, D).items():
                yield Slot(f"signals.{signal.name}.{name}", form, "signal")

    def _attention(self, layer: int) -> Iterator[Slot]:
        config, shape = self.config, self.shape
        block, c = shape.family.attention, shape.head_dim
        base, at = f"layers.{layer}.attention", lambda part: shape.family.layer(layer, part)
        if config.heads:
            yield from self._norm(f"{base}.norm", at(block.norm) if block.norm else "")
            scale = c**-0.5 if block.scaled_query else 1.0
            inputs = [("query", block.query, self.head_units, scale)]
            if config.kv == "own":
                inputs += [
                    ("key", block.key, self.kv_units, 1.0),
                    ("value", block.value, self.kv_units, 1.0),
                ]
            for name, part, heads, scale in inputs:
                rows = projection_rows(shape, name, heads)
                yield from self._input(
                    f"{base}.{name}", at(part), rows, shape.attention_bias, scale
                )
            yield from self._head_norms(base, layer)
            if block.sinks:
                names = shape.family.on_disk(at(block.sinks))
                yield Slot(f"{base}.sinks", (config.heads,), "bias", Source(names, self.head_units))
        yield from self._output(
            f"{base}.out", layer, block, shape.heads * c, config.heads * c, shape.out_bias
        )

    def _head_norms(self, base: str, layer: int) -> Iterator[Slot]:
        block, c = self.shape.family.attention, self.shape.head_dim
        norms = [("query_norm", block.query_norm, self.head_units)]
        if self.config.kv == "own":
            norms.append(("key_norm", block.key_norm, self.kv_units))
        for name, part, heads in norms:
            if part:
                rows = head_rows(heads, c) if block.joint_norm else np.arange(c)
                source = self._source(self.shape.family.layer(layer, part), rows)
                source = replace(source, offset=self.shape.family.norm_offset)
                yield Slot(f"{base}.{name}.weight", (len(rows),), "norm", source)

    def _ffn(self, layer: int) -> Iterator[Slot]:
        config, shape = self.config, self.shape
        block = shape.family.ffn
        base, at = f"layers.{layer}.ffn", lambda part: shape.family.layer(layer, part)
        if config.ffn:
            yield from self._norm(f"{base}.norm", at(block.norm) if block.norm else "")
            for name, part in (("gate", block.gate), ("up", block.up)):
                if name == "gate" and block.plain:
                    continue
                rows = self.ffn_units + (shape.ffn if block.fused and name == "up" else 0)
                others = [pair[name == "up"] for pair in block.elsewhere]
                places = tuple(at(place) for place in (part, *others) if place)
                yield from self._input(f"{base}.{name}", places, rows, shape.ffn_bias)
        yield from self._output(f"{base}.down", layer, block, shape.ffn, config.ffn, shape.ffn_bias)

    def _norm(self, name: str, source: str) -> Iterator[Slot]:
        """The stream's norm; of ones where the base reads h without one."""
        family, form = self.shape.family, (self.config.hidden,)
        weight = replace(self._source(source, self.units), offset=family.norm_offset)
        yield Slot(f"{name}.weight", form, "norm", weight if source else None, "ones")
        if family.norm_bias:
            bias = self._source(source, self.units, kind="bias") if source else None
            yield Slot(f"{name}.bias", form, "bias", bias)

    def _input(
        self, name: str, source: str | tuple[str, ...], rows: Index, bias: bool, scale: float = 1.0
    ) -> Iterator[Slot]:
        """`x W^h + u W^z (+ b)`: W^h mirrors the base's rows, W^z starts at zero, else x would
        count twice."""
        form, weight = (len(rows), self.shape.hidden), self._product(source, rows, scale)
        yield Slot(f"{name}.h.weight", form, "matrix", weight, fill="normal")
        yield Slot(f"{name}.z.weight", (len(rows), self.config.hidden), "matrix")
        if bias:
            of_base = replace(self._source(source, rows, kind="bias"), scale=scale)
            yield Slot(f"{name}.bias", (len(rows),), "bias", of_base)

    def _output(
        self,
        name: str,
        layer: int,
        block: Attention | FeedForward,
        wide: int,
        thin: int,
        bias: bool,
    ) -> Iterator[Slot]:
        """`z += a W^h + a' W^z (+ b)`, a of width `wide`; or o for a, all that the branch gives."""
        D, family = self.config.hidden, self.shape.family
        scale = self.shape.residual_scale
        end = family.layer(layer, block.end)
        if block.tap == "output":
            yield Slot(f"{name}.h.weight", (D, self.shape.hidden), "output", fill="units")
        else:
            weight = self._product(end, self.units, scale)
            yield Slot(f"{name}.h.weight", (D, wide), "output", weight)
        if thin:
            yield Slot(f"{name}.z.weight", (D, thin), "output")
        if bias and block.tap == "input":
            of_base = replace(self._source(end, self.units, kind="bias"), scale=scale)
            yield Slot(f"{name}.bias", (D,), "bias", of_base)
        if block.post_norm:
            post = self._source(family.layer(layer, block.post_norm), self.units)
            post = replace(post, offset=family.norm_offset)
            yield Slot(f"{name.rpartition('.')[0]}.post_norm.weight", (D,), "norm", post)

    def _product(self, modules: str | tuple[str, ...], rows: Index, scale: float) -> Source:
        source = self._source(modules, rows)
        return replace(source, scale=scale, transposed=self.shape.family.transposed)

    def _source(
        self,
        modules: str | tuple[str, ...],
        rows: Index | None = None,
        columns: Index | None = None,
        kind: str = "weight",
    ) -> Source:
        family = self.shape.family
        places = (modules,) if isinstance(modules, str) else modules
        names = tuple(n for place in places for n in family.on_disk(f"{place}.{kind}"))
        return Source(names, rows, columns)


def spread(count: int, total: int) -> Index:
    """`count` of `total` indices, evenly spaced and distinct where count <= total."""
    return np.arange(count, dtype=np.int64) * total // max(count, 1)
