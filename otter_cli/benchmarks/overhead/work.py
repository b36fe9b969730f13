"""Work by count: floating-point operations and bytes moved, of the base and of an insertion.

A multiplication and an addition are two operations. A weight is read once a pass, keys and values
of the context once; activations are taken to stay in the processor's caches, so this is a bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from otter_cli.insertion import InsertionConfig, Plan
from otter_cli.signals import Future, SignalConfig

if TYPE_CHECKING:
    from otter_cli.families import BaseShape


@dataclass(frozen=True)
class Work:
    flops: float
    bytes: float

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)


@dataclass(frozen=True)
class Pass:
    """`tokens` new ones in each of `batch` rows, after `context`; logits of the last ones only."""

    batch: int
    tokens: int
    context: int
    itemsize: int

    @property
    def rows(self) -> int:
        return self.batch * self.tokens

    @property
    def pairs(self) -> float:
        """Queries times the positions that each of them sees."""
        return self.batch * self.tokens * (self.context + (self.tokens + 1) / 2)

    @property
    def cached(self) -> int:
        """Positions whose keys and values are read or written."""
        return self.batch * (self.context + self.tokens)


def base_work(shape: BaseShape, layer_weights: int, one: Pass) -> Work:
    """A pass of the base, whose decoder layers hold `layer_weights` matrix elements."""
    head = shape.vocab * shape.hidden
    cache = 2 * shape.layers * shape.kv_heads * shape.head_dim * one.cached
    products = 2 * (layer_weights * one.rows + head * one.batch)
    attention = 4 * shape.layers * shape.heads * shape.head_dim * one.pairs
    moved = layer_weights + head + shape.hidden * one.rows + cache
    return Work(products + attention, one.itemsize * moved)


def inserted_work(plan: Plan, one: Pass) -> Work:
    """What the insertion adds to that pass; its signals are read at the last positions."""
    config, shape = plan.config, plan.shape
    matrices = sum(slot.count for slot in plan.slots if slot.role in ("matrix", "output"))
    heads = sum(slot.count for slot in plan.slots if slot.role == "signal" and len(slot.shape) > 1)
    futures = [signal for signal in config.signals if signal.kind == "future"]
    again = sum(repeated_work(signal, config, shape) for signal in futures)
    # The base's keys and values are read by its own attention anyhow.
    own = config.kv_heads if config.kv == "own" else 0
    cache = 2 * len(config.layers) * own * shape.head_dim * one.cached
    products = 2 * (matrices * one.rows + (heads + again) * one.batch)
    attention = 4 * len(config.layers) * config.heads * shape.head_dim * one.pairs
    moved = matrices + heads + config.hidden * one.rows + cache
    return Work(products + attention, one.itemsize * moved)


def repeated_work(signal: SignalConfig, config: InsertionConfig, shape: BaseShape) -> int:
    """Multiply-adds of future tokens read at one position, beyond one use of each weight: products
    over the vocabulary, and the steps of a cell, which goes on from its own guesses."""
    product = shape.vocab * shape.hidden
    if signal.width == 0:
        return signal.size * product
    step = Future().work(signal, shape.hidden, config.hidden, shape.vocab) - product
    # A guess is looked up before the next step, and all are read in the end.
    return 2 * signal.size * product + (signal.size - 1) * step
