"""Structural proof: on each path, the base's operations form the graph they form without the
insertion, and none of them reads what it made. That holds for all values, not only a grid's.

A quick grid compares the graph in representative layers; that nothing inserted is read is followed
through all of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from typing import Any

from otter_cli.model import OtterForCausalLM, inside_insertion
from otter_cli.verification.cases import Case
from otter_cli.verification.grid import Grid
from otter_cli.verification.layers import representative_layers
from otter_cli.verification.pair import Pair
from otter_cli.verification.run import run
from otter_cli.verification.trace import Leak, Operation, Trace, Tracer

_ATTENTION = "attention"


@dataclass(frozen=True)
class PathTrace:
    """One traced path. `graph`: digest of the base's operations and what each of them reads, in the
    `layers` that were compared, of `depth` in all; no layers: in every one. `passed`: operations of
    the base in other layers, of which only what they read was looked at."""

    case: Case
    operations: int
    inserted: int
    graph: str
    kernels: tuple[str, ...]
    leak: Leak | None
    layers: tuple[int, ...] = ()
    depth: int = 0
    passed: int = 0

    def record(self) -> dict[str, Any]:
        return {
            **vars(self),
            "case": self.case.record(),
            "kernels": list(self.kernels),
            "layers": list(self.layers),
            "leak": self.leak and self.leak.record(),
        }


def traced_cases(cases: list[Case], window: int, grid: Grid | None = None) -> list[Case]:
    """A trace for each kind of forward path in the settings of the cases: long enough to pass every
    length at which a kernel or a mask changes its mind, short where steps repeat themselves. Beside
    the main setting of `grid`, the first two paths."""
    settings = dict.fromkeys((case.dtype, case.attention, case.device) for case in cases)
    paths: tuple[Case, ...] = (
        Case("prefill", min(136, window)),
        Case("decode", min(16, window - 1), batch=4, padding="left", steps=1),
        Case("decode", min(120, window - 1), steps=1),
        Case("prefill", min(16, window), batch=4, padding="right"),
        Case("chunked", min(24, window), chunk=12),
        Case("static", min(10, window - 1), steps=1),
    )
    if any(case.path == "checkpointing" for case in cases):
        paths += (Case("checkpointing", min(12, window), batch=2),)
    return [
        replace(path, dtype=dtype, attention=attention, device=device)
        for dtype, attention, device in settings
        for path in (paths[:2] if grid and grid.departures(dtype, attention) else paths)
    ]


def compared_layers(otter: OtterForCausalLM) -> tuple[int, ...]:
    """The layers whose operations a quick trace compares."""
    configs = otter.manifest.insertions
    marks = [
        [config.name for config in configs if index in config.layers]
        for index in range(len(otter.taps.layers))
    ]
    return representative_layers(list(otter.taps.layers), marks)


def trace_path(
    pair: Pair, otter: OtterForCausalLM, case: Case, *, layers: tuple[int, ...] = ()
) -> PathTrace:
    """`layers`: those whose operations are compared; by default all of them."""
    depth = len(otter.taps.layers)
    layers = () if len(layers) == depth else layers
    inner = partial(_compares, otter.shape.family.layers, frozenset(layers or range(depth)))
    with Tracer(pair.base.model, compared=inner) as plain:
        run(case, pair.base)
    inserted = [parameter for _, parameter in otter.inserted_parameters()]
    with Tracer(pair.other.model, inserted, inside_insertion, inner) as grafted:
        run(case, pair.other)
    leak = grafted.trace.leak or _departure(plain.trace, grafted.trace)
    operations = grafted.trace.operations
    kernels = {op.name for op in operations if _ATTENTION in op.name}
    return PathTrace(
        case=case,
        operations=len(operations),
        inserted=grafted.trace.inserted,
        graph=_digest(operations),
        kernels=tuple(sorted(kernels)),
        leak=leak,
        layers=layers,
        depth=depth,
        passed=grafted.trace.passed,
    )


def _compares(prefix: str, layers: frozenset[int], module: str) -> bool:
    """Whether the operations of a module count: those outside of all layers do."""
    inside, _, rest = module.partition(f"{prefix}.")
    index = rest.partition(".")[0]
    return bool(inside) or not index.isdecimal() or int(index) in layers


def _departure(plain: Trace, grafted: Trace) -> Leak | None:
    """The first of the base's operations that is not the one that runs without an insertion."""
    for mine, theirs in zip_longest(grafted.operations, plain.operations):
        if mine != theirs:
            found = mine or theirs
            what = f"is not the base's own, which is {theirs}" if mine else "did not run"
            return Leak(found.name, found.module, what)
    return None


def _digest(operations: list[Operation]) -> str:
    digest = hashlib.sha256()
    for operation in operations:
        digest.update(f"{operation}\n".encode())
    return digest.hexdigest()
