"""Parameters that tell when others take their place: to ask each of them at every token takes
longer than some of the products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


def watch(module: nn.Module, tell: Callable[[], None]) -> None:
    """Calls `tell` whenever a parameter of the module, or of one inside it, is put in place or
    taken away."""
    for owner in module.modules():
        known = owner._parameters
        if not isinstance(known, _Watched):
            owner._parameters = known = _Watched(known)
        if tell not in known.told:
            known.told.append(tell)


class _Watched(dict[str, Any]):
    """What a module holds its parameters in."""

    def __init__(self, parameters: dict[str, Any]) -> None:
        super().__init__(parameters)
        self.told: list[Callable[[], None]] = []

    def __reduce__(self) -> Any:
        # Of a copy nobody is told.
        return dict, (dict(self),)


def _telling(name: str) -> Callable[..., Any]:
    change = getattr(dict, name)

    def changed(self: _Watched, *given: Any, **named: Any) -> Any:
        for tell in self.told:
            tell()
        return change(self, *given, **named)

    return changed


_CHANGES = (
    "__setitem__",
    "__delitem__",
    "__ior__",
    "update",
    "setdefault",
    "pop",
    "popitem",
    "clear",
)
for _name in _CHANGES:
    setattr(_Watched, _name, _telling(_name))
