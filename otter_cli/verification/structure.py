"""The structural level: on each path the base runs the same graph with and without the insertion.

No operation of the base reads what the insertion made; that holds for all values, not only for
those of a grid. A quick grid compares the graph in representative layers: the first, the middle,
the last, and one of each kind. What is read is followed through all layers."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from typing import Any

from torch import nn

from otter_cli.model.forward_context import inside_insertion
from otter_cli.model.otter import OtterForCausalLM
from otter_cli.verification.case_runner import ModelPair, run_case
from otter_cli.verification.grid import Case, Grid
from otter_cli.verification.trace import Leak, Operation, Trace, Tracer

# An attribute that only says which layer a module belongs to.
_INDEX = re.compile(r"(^|_)(idx|index|layer_id)$")
_HOOK_ATTRIBUTES = ("_forward_hooks", "_forward_pre_hooks")


def representative_layers(
    layers: Sequence[nn.Module], marks: Sequence[Collection[str]] = ()
) -> tuple[int, ...]:
    """The first, middle and last index, and the first of every kind of layer. Two layers are of a
    kind if all of their modules have the same classes, settings, shapes and hooks. `marks`: what
    else tells the layers apart, such as the insertions that each of them has."""
    count = len(layers)
    kinds: dict[Hashable, int] = {}
    for index, layer in enumerate(layers):
        mark = tuple(sorted(marks[index])) if marks else ()
        kinds.setdefault((_kind(layer), mark), index)
    ends = {0, count // 2, count - 1} if count else set()
    return tuple(sorted(ends | set(kinds.values())))


def _kind(layer: nn.Module) -> Hashable:
    return tuple((name, *_module_form(module)) for name, module in layer.named_modules())


def _module_form(module: nn.Module) -> tuple[Hashable, ...]:
    settings = tuple(
        (name, _setting_value(value))
        for name, value in sorted(vars(module).items())
        if not name.startswith("_")
        and not _INDEX.search(name)
        and _setting_value(value) is not None
    )
    tensors = tuple(
        (name, tuple(tensor.shape), str(tensor.dtype))
        for name, tensor in (
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
        )
    )
    hooks = tuple(
        tuple(map(_code_name, getattr(module, name).values())) for name in _HOOK_ATTRIBUTES
    )
    return f"{type(module).__module__}.{type(module).__qualname__}", settings, tensors, hooks


def _setting_value(value: Any) -> Hashable:
    """Values that choose what a layer computes; a `forward` that was set on one module is code."""
    if isinstance(value, bool | int | float | str):
        return repr(value)
    if isinstance(value, list | tuple) and all(isinstance(v, int | float | str) for v in value):
        return repr(value)
    return _code_name(value) if callable(value) and not isinstance(value, nn.Module) else None


def _code_name(function: Any) -> str:
    """The code behind a function, a method or a callable object: not which layer it is bound to."""
    inner = getattr(function, "func", function)
    kind = inner if hasattr(inner, "__qualname__") else type(inner)
    return f"{kind.__module__}.{kind.__qualname__}"


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
    pair: ModelPair, otter: OtterForCausalLM, case: Case, *, layers: tuple[int, ...] = ()
) -> PathTrace:
    """`layers`: those whose operations are compared; by default all of them."""
    depth = len(otter.taps.layers)
    layers = () if len(layers) == depth else layers
    inner = partial(_is_compared, otter.shape.family.layers, frozenset(layers or range(depth)))
    with Tracer(pair.base.model, compared=inner) as plain:
        run_case(case, pair.base)
    inserted = [parameter for _, parameter in otter.inserted_parameters()]
    with Tracer(pair.other.model, inserted, inside_insertion, inner) as grafted:
        run_case(case, pair.other)
    leak = grafted.trace.leak or _graph_difference(plain.trace, grafted.trace)
    operations = grafted.trace.operations
    kernels = {op.name for op in operations if _ATTENTION in op.name}
    return PathTrace(
        case=case,
        operations=len(operations),
        inserted=grafted.trace.inserted,
        graph=_graph_digest(operations),
        kernels=tuple(sorted(kernels)),
        leak=leak,
        layers=layers,
        depth=depth,
        passed=grafted.trace.passed,
    )


def _is_compared(prefix: str, layers: frozenset[int], module: str) -> bool:
    """Whether the operations of a module count: those outside of all layers do."""
    inside, _, rest = module.partition(f"{prefix}.")
    index = rest.partition(".")[0]
    return bool(inside) or not index.isdecimal() or int(index) in layers


def _graph_difference(plain: Trace, grafted: Trace) -> Leak | None:
    """The first of the base's operations that is not the one that runs without an insertion."""
    for mine, theirs in zip_longest(grafted.operations, plain.operations):
        if mine != theirs:
            found = mine or theirs
            what = f"is not the base's own, which is {theirs}" if mine else "did not run"
            return Leak(found.name, found.module, what)
    return None


def _graph_digest(operations: list[Operation]) -> str:
    digest = hashlib.sha256()
    for operation in operations:
        digest.update(f"{operation}\n".encode())
    return digest.hexdigest()
