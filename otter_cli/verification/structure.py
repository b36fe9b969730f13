"""The structural level: on each path the base runs the same graph with and without the insertion.

No operation of the base reads a tensor that the insertion made. That holds for all values, not only
for those of a grid. A quick grid compares the graph in representative layers only: the first, the
middle, the last, and one of each kind. What operations read is followed through all layers.
"""

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
from otter_cli.verification.trace import Leak, Trace, Tracer

# An attribute that only says which layer a module belongs to.
_INDEX = re.compile(r"(^|_)(idx|index|layer_id)$")
_HOOK_ATTRIBUTES = ("_forward_hooks", "_forward_pre_hooks")
_ATTENTION = "attention"


def representative_layers(
    layers: Sequence[nn.Module], marks: Sequence[Collection[str]] = ()
) -> tuple[int, ...]:
    """The first, middle and last index, and the first of every kind of layer.

    Two layers are of one kind if all of their modules have the same classes, settings, shapes and
    hooks, and if their `marks` are equal, such as the insertions that each of them has.
    """
    count = len(layers)
    kinds: dict[Hashable, int] = {}
    for index, layer in enumerate(layers):
        modules = tuple((name, *_module_form(module)) for name, module in layer.named_modules())
        mark = tuple(sorted(marks[index])) if marks else ()
        kinds.setdefault((modules, mark), index)
    ends = {0, count // 2, count - 1} if count else set()
    return tuple(sorted(ends | set(kinds.values())))


def _module_form(module: nn.Module) -> tuple[Hashable, ...]:
    settings = tuple(
        (name, setting)
        for name, value in sorted(vars(module).items())
        if not name.startswith("_") and not _INDEX.search(name)
        if (setting := _setting_value(value)) is not None
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
    """A form of an attribute that decides what a layer computes, or None for other attributes. A
    function, such as a replaced `forward`, counts by its code."""
    if isinstance(value, bool | int | float | str):
        return repr(value)
    if isinstance(value, list | tuple) and all(isinstance(v, int | float | str) for v in value):
        return repr(value)
    return _code_name(value) if callable(value) and not isinstance(value, nn.Module) else None


def _code_name(function: Any) -> str:
    """The name of the code of a function, method or callable object, whatever layer it is bound
    to."""
    inner = getattr(function, "func", function)
    code = inner if hasattr(inner, "__qualname__") else type(inner)
    return f"{code.__module__}.{code.__qualname__}"


@dataclass(frozen=True)
class PathTrace:
    """One traced path.

    `operations`, `inserted`: operations of the base and of the insertion. `graph`: digest of the
    base's operations and of what each reads, in the compared `layers` of `depth` in all (empty: in
    every layer). `passed`: the base's operations in the other layers, where only what they read is
    followed.
    """

    case: Case
    operations: int
    inserted: int
    graph: str
    kernels: tuple[str, ...]
    leak: Leak | None
    layers: tuple[int, ...] = ()
    depth: int = 0
    passed: int = 0


def traced_cases(cases: list[Case], window: int, grid: Grid | None = None) -> list[Case]:
    """One trace for each kind of forward path, in each setting of the cases.

    Prompts are longer than every length at which a kernel or a mask changes, except where steps
    repeat themselves. Settings other than the main one of `grid` have the first two paths only.
    """
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
    layers, configs = list(otter.capture.layers), otter.manifest.insertions
    marks = [
        [config.name for config in configs if index in config.layers]
        for index in range(len(layers))
    ]
    return representative_layers(layers, marks)


def trace_path(
    pair: ModelPair, otter: OtterForCausalLM, case: Case, *, layers: tuple[int, ...] = ()
) -> PathTrace:
    """Traces a case on both models. `layers`: those whose operations are compared, by default
    all."""
    depth = len(otter.capture.layers)
    layers = () if len(layers) == depth else layers
    compared = partial(_is_compared, otter.shape.family.layers, frozenset(layers or range(depth)))
    with Tracer(pair.base.model, compared=compared) as plain:
        run_case(case, pair.base)
    inserted = [parameter for _, parameter in otter.inserted_parameters()]
    with Tracer(pair.candidate.model, inserted, inside_insertion, compared) as grafted:
        run_case(case, pair.candidate)
    trace = grafted.trace
    graph = hashlib.sha256()
    for operation in trace.operations:
        graph.update(f"{operation}\n".encode())
    return PathTrace(
        case=case,
        operations=len(trace.operations),
        inserted=trace.inserted,
        graph=graph.hexdigest(),
        kernels=tuple(sorted({op.name for op in trace.operations if _ATTENTION in op.name})),
        leak=trace.leak or _graph_difference(plain.trace, trace),
        layers=layers,
        depth=depth,
        passed=trace.passed,
    )


def _is_compared(prefix: str, layers: frozenset[int], module: str) -> bool:
    """Whether the operations of a module are compared: those of `layers`, and those outside of all
    layers."""
    outside, _, rest = module.partition(f"{prefix}.")
    index = rest.partition(".")[0]
    return bool(outside) or not index.isdecimal() or int(index) in layers


def _graph_difference(plain: Trace, grafted: Trace) -> Leak | None:
    """The first operation of the base that differs from the one that runs without an insertion."""
    for operation, expected in zip_longest(grafted.operations, plain.operations):
        if operation is None:
            return Leak(expected.name, expected.module, "did not run")
        if operation != expected:
            what = f"is not the base's own, which is {expected}"
            return Leak(operation.name, operation.module, what)
    return None
