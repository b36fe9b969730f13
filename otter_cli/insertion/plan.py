"""Which parts of a base an insertion goes beside, and what it comes to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from otter_cli.checkpoint.listing import MANIFEST
from otter_cli.families import BaseShape
from otter_cli.insertion.config import InsertionConfig
from otter_cli.insertion.slots import Slot, Slots
from otter_cli.insertion.sources import Index


@dataclass(frozen=True)
class Plan:
    """The tensors that `config` inserts into a base of `shape`."""

    config: InsertionConfig
    shape: BaseShape

    def __post_init__(self) -> None:
        # `resolve` has checked what options say; this is for what a file says.
        self.config.check(self.shape, f"{MANIFEST}: insertion {self.config.name!r}: ")

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        prefix = f"otter.{self.config.name}."
        return tuple(replace(slot, name=prefix + slot.name) for slot in Slots(self).all())

    @cached_property
    def units(self) -> Index:
        """Hidden units S of the base that the stream mirrors at first."""
        return spread(self.config.hidden, self.shape.hidden)

    @cached_property
    def kv_units(self) -> Index:
        """The base's key/value head behind each inserted key/value head."""
        if self.config.kv == "base":
            return range(self.config.kv_start, self.config.kv_start + self.config.kv_heads)
        return spread(self.config.kv_heads, self.shape.kv_heads)

    @cached_property
    def head_units(self) -> Index:
        """The base's query head behind each inserted query head: one that reads the same key/value
        head."""
        if not self.config.heads:
            return []
        share = self.config.heads // self.config.kv_heads
        group = self.shape.group
        return [unit * group + head % group for unit in self.kv_units for head in range(share)]

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


def spread(count: int, total: int) -> Index:
    """`count` of `total` indices, evenly spaced and distinct where count <= total."""
    return [index * total // count for index in range(count)]
