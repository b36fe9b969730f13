"""Which decoder layers stand for all: the first, the middle and the last, and one of each kind."""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Sequence
from typing import Any

from torch import nn

# An attribute that only says which layer a module belongs to.
_INDEX = re.compile(r"(^|_)(idx|index|layer_id)$")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


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
    return tuple((name, *_form(module)) for name, module in layer.named_modules())


def _form(module: nn.Module) -> tuple[Hashable, ...]:
    settings = tuple(
        (name, _plain(value))
        for name, value in sorted(vars(module).items())
        if not name.startswith("_") and not _INDEX.search(name) and _plain(value) is not None
    )
    tensors = tuple(
        (name, tuple(tensor.shape), str(tensor.dtype))
        for name, tensor in (
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
        )
    )
    hooks = tuple(tuple(map(_code, getattr(module, name).values())) for name in _HOOKS)
    return f"{type(module).__module__}.{type(module).__qualname__}", settings, tensors, hooks


def _plain(value: Any) -> Hashable:
    """Values that choose what a layer computes; a `forward` that was set on one module is code."""
    if isinstance(value, bool | int | float | str):
        return repr(value)
    if isinstance(value, list | tuple) and all(isinstance(v, int | float | str) for v in value):
        return repr(value)
    return _code(value) if callable(value) and not isinstance(value, nn.Module) else None


def _code(function: Any) -> str:
    """The code behind a function, a method or a callable object: not which layer it is bound to."""
    inner = getattr(function, "func", function)
    kind = inner if hasattr(inner, "__qualname__") else type(inner)
    return f"{kind.__module__}.{kind.__qualname__}"
