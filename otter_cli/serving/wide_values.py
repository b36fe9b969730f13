"""The numbers of the wide layout's matrices: the base's, the inserted ones and zeros between."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from otter_cli.checkpoint.dtypes import Array
from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.checkpoint.weights import Weights
from otter_cli.insertion import Plan


@dataclass(frozen=True)
class Part:
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
    inserted: Weights
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

    def input(self, source: str, parts: list[Part]) -> Array:
        """[[W, 0], [W^h, W^z]] as [out, in], one part after the other."""
        weight = self.base.read(f"{source}.weight")
        return np.concatenate([self._input(weight[p.start : p.stop], p) for p in parts])

    def _input(self, weight: Array, part: Part) -> Array:
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

    def bias(self, source: str, parts: list[Part]) -> Array:
        bias = self.base.read(f"{source}.bias")
        return np.concatenate([self._bias(bias[p.start : p.stop], p) for p in parts])

    def _bias(self, bias: Array, part: Part) -> Array:
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
