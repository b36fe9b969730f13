"""Insertions of a wanted share of the base's parameters, spent on FFN, attention or both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from otter_cli.benchmarks.overhead.bench import signals_of
from otter_cli.families import BaseShape
from otter_cli.insertion import InsertionConfig, Plan, resolve

Spent = Literal["FFN", "attention", "both"]
SWEEP = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
_STEPS = 160


def sized(shape: BaseShape, parameters: int, share: float, spent: Spent) -> Plan:
    """The plan nearest to that share of the base's `parameters`, over as many layers as it can."""
    return min(
        _candidates(shape, spent),
        key=lambda plan: (
            # Within a tenth of what was asked for, more layers count for more than nearness.
            max(0.1, round(abs(plan.parameters / (share * parameters) - 1), 2)),
            -len(plan.config.layers),
            abs(plan.parameters / (share * parameters) - 1),
        ),
    )


def _candidates(shape: BaseShape, spent: Spent) -> Iterator[Plan]:
    """The base's proportions on scales from thin to half as wide, on its last layers if not all."""
    depths = sorted({shape.layers, max(1, shape.layers // 2), max(1, shape.layers // 4)})
    for step in range(1, _STEPS + 1):
        # Finer where it is thin.
        scale = 0.5 * (step / _STEPS) ** 2
        for depth in depths:
            yield Plan(_config(shape, scale, depth, spent), shape)


def _config(shape: BaseShape, scale: float, depth: int, spent: Spent) -> InsertionConfig:
    return resolve(
        shape,
        hidden=max(1, round(scale * shape.hidden)),
        heads=0 if spent == "FFN" else max(1, round(scale * shape.heads)),
        ffn=0 if spent == "attention" else max(1, round(scale * shape.ffn)),
        layers=tuple(range(shape.layers - depth, shape.layers)),
        # A table of all tokens alone would exceed the smallest of them.
        embedding="zeros",
        signals=signals_of(["reward"]),
    )
