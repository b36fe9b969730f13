"""Every tensor of an insertion, by name, shape and where a copy of the base would come from; and
what it costs.

Shapes follow METHOD, 1. A weight is stored as torch.nn.Linear does, [out, in]: `x W^h` is
`.h.weight`, `u W^z` is
`.z.weight`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from otter_cli.families import BaseShape
from otter_cli.insertion.config import InsertionConfig
from otter_cli.signals import HEADS

Index = np.ndarray


@dataclass(frozen=True)
class Slot:
    """One tensor. `source`, `rows`, `columns`: what `copy` takes from the base; None: zeros there.

    `role` is matrix, output (its product is added to z), norm, bias, embedding or signal.
    """

    name: str
    shape: tuple[int, ...]
    role: str
    source: str | None = None
    rows: Index | None = None
    columns: Index | None = None

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
        return tuple(
            Slot(prefix + s.name, s.shape, s.role, s.source, s.rows, s.columns)
            for s in self._slots()
        )

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
            yield Slot(
                "embedding.weight",
                (shape.vocab, D),
                "embedding",
                f"{family.embedding}.weight",
                None,
                self.units,
            )
        for layer in config.layers:
            yield from self._attention(layer)
            yield from self._ffn(layer)
        if D:
            yield Slot("norm.weight", (D,), "norm", f"{family.final_norm}.weight", self.units)
        for signal in config.signals:
            for name, form in HEADS[signal.kind].shapes(signal, d, D).items():
                yield Slot(f"signals.{signal.name}.{name}", form, "signal")

    def _attention(self, layer: int) -> Iterator[Slot]:
        config, shape, family = self.config, self.shape, self.shape.family
        block, c = family.attention, shape.head_dim
        base, at = f"layers.{layer}.attention", lambda part: family.layer(layer, part)
        query_rows, kv_rows = head_rows(self.head_units, c), head_rows(self.kv_units, c)
        if config.heads:
            yield Slot(
                f"{base}.norm.weight",
                (config.hidden,),
                "norm",
                f"{at(block.norm)}.weight",
                self.units,
            )
            inputs = [("query", block.query, query_rows)]
            if config.kv == "own":
                inputs += [("key", block.key, kv_rows), ("value", block.value, kv_rows)]
            for name, part, rows in inputs:
                yield from self._input(f"{base}.{name}", at(part), rows, shape.attention_bias)
            for name, norm in (("query_norm", block.query_norm), ("key_norm", block.key_norm)):
                if norm and (name == "query_norm" or config.kv == "own"):
                    yield Slot(f"{base}.{name}.weight", (c,), "norm", f"{at(norm)}.weight")
        yield from self._output(
            f"{base}.out", at(block.out), shape.heads * c, config.heads * c, shape.out_bias
        )

    def _ffn(self, layer: int) -> Iterator[Slot]:
        config, shape, family = self.config, self.shape, self.shape.family
        block = family.ffn
        base, at = f"layers.{layer}.ffn", lambda part: family.layer(layer, part)
        if config.ffn:
            yield Slot(
                f"{base}.norm.weight",
                (config.hidden,),
                "norm",
                f"{at(block.norm)}.weight",
                self.units,
            )
            for name, part in (("gate", block.gate), ("up", block.up)):
                yield from self._input(f"{base}.{name}", at(part), self.ffn_units, shape.ffn_bias)
        yield from self._output(
            f"{base}.down", at(block.down), shape.ffn, config.ffn, shape.ffn_bias
        )

    def _input(self, name: str, source: str, rows: Index, bias: bool) -> Iterator[Slot]:
        """`x W^h + u W^z (+ b)`: W^h mirrors the base's rows, W^z starts at zero, else x would
        count twice."""
        yield Slot(
            f"{name}.h.weight", (len(rows), self.shape.hidden), "matrix", f"{source}.weight", rows
        )
        yield Slot(f"{name}.z.weight", (len(rows), self.config.hidden), "matrix")
        if bias:
            yield Slot(f"{name}.bias", (len(rows),), "bias", f"{source}.bias", rows)

    def _output(self, name: str, source: str, wide: int, thin: int, bias: bool) -> Iterator[Slot]:
        """`z += a W^h + a' W^z (+ b)`."""
        D = self.config.hidden
        yield Slot(f"{name}.h.weight", (D, wide), "output", f"{source}.weight", self.units)
        if thin:
            yield Slot(f"{name}.z.weight", (D, thin), "output")
        if bias:
            yield Slot(f"{name}.bias", (D,), "bias", f"{source}.bias", self.units)


def spread(count: int, total: int) -> Index:
    """`count` of `total` indices, evenly spaced and distinct where count <= total."""
    return np.arange(count, dtype=np.int64) * total // max(count, 1)


def head_rows(heads: Index, head_dim: int) -> Index:
    """Rows of a projection that belong to `heads`."""
    return (heads[:, None] * head_dim + np.arange(head_dim)).reshape(-1)
