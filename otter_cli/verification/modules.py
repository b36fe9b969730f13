"""Which module of a base is running now, by its full name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

# What is told of a module's inputs and of its outputs: (its name, "input" or "output", tensors).
Watcher = Callable[[str, str, list[Tensor]], None]


class ModulePath:
    """`current` is the innermost base module whose call is under way, "" outside all of them."""

    def __init__(self) -> None:
        self._stack: list[str] = []

    @property
    def current(self) -> str:
        return self._stack[-1] if self._stack else ""

    @contextmanager
    def following(self, model: nn.Module, watch: Watcher) -> Iterator[None]:
        """Keeps `current` while `model` runs, and shows `watch` what passes between modules."""
        with ExitStack() as stack:
            for name, module in model.named_modules():
                enter, leave = partial(self._enter, name, watch), partial(self._leave, name, watch)
                # Around all other hooks: what they do counts as this module's.
                for handle in (
                    module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True),
                    module.register_forward_hook(leave, with_kwargs=True, always_call=True),
                ):
                    stack.callback(handle.remove)
            yield

    def _enter(
        self, name: str, watch: Watcher, module: nn.Module, inputs: Any, named: dict[str, Any]
    ) -> None:
        self._stack.append(name)
        watch(name, "input", list(tensors_in((inputs, named))))

    def _leave(
        self, name: str, watch: Watcher, module: nn.Module, inputs: Any, named: Any, output: Any
    ) -> None:
        watch(name, "output", list(tensors_in(output)))
        self._stack.pop()


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Tensors in nested tuples, lists and dicts. Caches are none of these: they may hold both
    the base's layers and the insertion's."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_in(part)
