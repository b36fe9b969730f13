"""A trace of every operation that a forward dispatches, and of what inserted values reach.

Storages are followed, not tensors, so that views and in-place writes count alike. What an
operation of the insertion makes is *foreign*; what depends on an inserted parameter is *tainted*
as well. The base is untouched if its own operations read neither, nothing of the insertion writes
to its storages or draws from its generator, and no tainted value leaves as a Python number.

In layers outside of `compared`, the base's operations are followed but not written down."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import count
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# What is told of a module's inputs and of its outputs: (its name, "input" or "output", tensors).
ModuleWatcher = Callable[[str, str, list[Tensor]], None]


class ModulePath:
    """`current` is the innermost base module whose call is under way, "" outside all of them."""

    def __init__(self) -> None:
        self._stack: list[str] = []

    @property
    def current(self) -> str:
        return self._stack[-1] if self._stack else ""

    @contextmanager
    def following(self, model: nn.Module, watch: ModuleWatcher) -> Iterator[None]:
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
        self, name: str, watch: ModuleWatcher, module: nn.Module, inputs: Any, named: dict[str, Any]
    ) -> None:
        self._stack.append(name)
        watch(name, "input", list(tensors_in((inputs, named))))

    def _leave(
        self,
        name: str,
        watch: ModuleWatcher,
        module: nn.Module,
        inputs: Any,
        named: Any,
        output: Any,
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


# Ways out of a tensor that dispatch no operation.
_UNDISPATCHED = {
    torch.Tensor.numpy,
    torch.Tensor.tolist,
    torch.Tensor.__array__,
    torch.Tensor.__dlpack__,
    torch.Tensor.data_ptr,
}
# Those that share its memory: what is written there is no operation either.
_SHARES_MEMORY = {torch.Tensor.numpy, torch.Tensor.__array__, torch.Tensor.__dlpack__}
_FORGET_AFTER = 16  # storages, at least
_SEEDED = torch.Tag.nondeterministic_seeded
_VALUE_DEPENDENT = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


@dataclass(frozen=True)
class Leak:
    """Where an inserted value gets at the base: the operation, in which module, and how."""

    operation: str
    module: str
    what: str

    def record(self) -> dict[str, str]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.operation} in {self.module or 'no module of the base'} {self.what}"


@dataclass(frozen=True)
class Operation:
    """One operation of the base's: `inputs` says which storages it read, and how."""

    name: str
    module: str
    inputs: str

    def __str__(self) -> str:
        return f"{self.name} in {self.module or 'no module'} of {self.inputs}"


@dataclass
class Trace:
    """What was seen: the base's own operations in order, how many of the insertion, how many of the
    base that were not written down, and the first leak."""

    operations: list[Operation] = field(default_factory=list)
    inserted: int = 0
    passed: int = 0
    leak: Leak | None = None


class Tracer(TorchDispatchMode):
    """Traces `model` while it is active; `inside` tells whether the insertion runs now."""

    def __init__(
        self,
        model: nn.Module,
        inserted: Iterable[Tensor] | None = None,
        inside: Callable[[], bool] = lambda: False,
        compared: Callable[[str], bool] = lambda module: True,
    ) -> None:
        super().__init__()
        self.trace = Trace()
        self._compared, self._compares = compared, dict[str, bool]()
        self._model, self._inside, self._modules = model, inside, ModulePath()
        # Numbers by address, which a weak reference keeps from being used again.
        self.seen: dict[int, tuple[StorageWeakRef, int]] = {}
        self._numbers = count()
        self._forget_at = _FORGET_AFTER
        self._names: dict[int, str] = {}
        self._foreign: set[int] = set()
        self._tainted: set[int] = set()
        # Storages of the base that no operation that is written down has shown.
        self._passed: set[int] = set()
        # A model without an insertion has nothing to follow where nothing is written down.
        self._follows = inserted is not None
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            self._names.setdefault(self.identity(tensor), name)
        for tensor in inserted or ():
            self._tainted.add(self.identity(tensor))

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self._modules.following(self._model, self._watch))
            stack.enter_context(_UndispatchedCalls(self))
            super().__enter__()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._stack.close()

    def escape(self, what: str, tensors: Iterable[Tensor], how: str) -> None:
        """A value that leaves by other ways than an operation's tensors."""
        if not self._tainted.isdisjoint(map(self.identity, tensors)):
            self._leak(what, f"turns an inserted value into {how}")

    def open(self, what: str, tensors: Iterable[Tensor]) -> None:
        """Memory that the insertion gets its hands on past all operations."""
        if self._inside() and any(map(self._shown, map(self.identity, tensors))):
            self._leak(what, "opens the memory of a tensor of the base's")

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), named: Any = None
    ) -> Any:
        named = named or {}
        if not self._follows and not self._writes_down():
            return function(*arguments, **named)
        read = list(tensors_in((arguments, named)))
        written = [self.identity(tensor) for tensor in _written_tensors(function, arguments, named)]
        name = str(function)
        generators = _generator_states() if self._inside() and _SEEDED in function.tags else []
        output = function(*arguments, **named)
        made = list(tensors_in(output))
        if generators and not all(map(torch.equal, generators, _generator_states())):
            # The next numbers that the base draws are others then.
            self._leak(name, "draws random numbers from the base's generator")
        if any(tag in function.tags for tag in _VALUE_DEPENDENT):
            self.escape(name, read, "a number or a shape")
        sources, targets = [*map(self.identity, read)], [*map(self.identity, made)]
        if self._inside():
            self._inserted_operation(name, sources, written, targets)
        elif self._writes_down():
            self._base_operation(name, (arguments, named), sources, targets)
        else:
            self._passed_operation(name, sources, targets)
        return output

    def _writes_down(self) -> bool:
        module = self._modules.current
        if module not in self._compares:
            self._compares[module] = self._compared(module)
        return self._compares[module]

    def _inserted_operation(
        self, name: str, read: list[int], written: list[int], made: list[int]
    ) -> None:
        self.trace.inserted += 1
        if any(map(self._shown, written)):
            self._leak(name, "writes to a tensor of the base's")
        # Whatever the base has not shown before is the insertion's own.
        own = {storage for storage in (*read, *made) if not self._shown(storage)}
        if not self._tainted.isdisjoint(read):
            self._tainted |= own.intersection((*written, *made))
        self._foreign |= own

    def _base_operation(self, name: str, arguments: Any, read: list[int], made: list[int]) -> None:
        index = len(self.trace.operations)
        inputs = ", ".join(map(self._describe, _flatten(arguments)))
        self.trace.operations.append(Operation(name, self._modules.current, inputs))
        if not all(map(self._is_base, read)):
            self._leak(name, "reads what the insertion made")
            self._foreign.update(made)
        for position, storage in enumerate(made):
            if self._is_base(storage):
                self._names.setdefault(storage, f"{index}.{position}")

    def _passed_operation(self, name: str, read: list[int], made: list[int]) -> None:
        self.trace.passed += 1
        if not all(map(self._is_base, read)):
            self._leak(name, "reads what the insertion made")
            self._foreign.update(made)
        self._passed.update(filter(self._is_base, (*read, *made)))

    def _shown(self, storage: int) -> bool:
        """Whether the base has shown the storage: it is the base's then."""
        return storage in self._names or storage in self._passed

    def _is_base(self, storage: int) -> bool:
        return storage not in self._foreign and storage not in self._tainted

    def _watch(self, module: str, side: str, tensors: list[Tensor]) -> None:
        if not self._inside() and not all(self._is_base(self.identity(t)) for t in tensors):
            self._leak(f"the {side}", "is what the insertion made")

    def _leak(self, operation: str, what: str) -> None:
        if self.trace.leak is None:
            self.trace.leak = Leak(operation, self._modules.current, what)

    def identity(self, tensor: Tensor) -> int:
        """A number for the tensor's storage that no other one has, before or after."""
        reference = StorageWeakRef(tensor.untyped_storage())
        if reference.cdata not in self.seen:
            number = next(self._numbers)
            if len(self.seen) >= self._forget_at:
                # What dead references leave between blocks that are free splits the heap. A share
                # of those that live may be dead: looking at all of them each time takes long.
                alive = [item for item in self.seen.items() if not item[1][0].expired()]
                self.seen = dict(alive)
                self._forget_at = len(alive) + max(_FORGET_AFTER, len(alive) // 8)
            self.seen[reference.cdata] = reference, number
        return self.seen[reference.cdata][1]

    def _describe(self, value: Any) -> str:
        if not isinstance(value, Tensor):
            # Generators and the like say where they lie in memory.
            return repr(value) if type(value).__module__ != "torch._C" else type(value).__name__
        storage = self.identity(value)
        if self._is_base(storage):
            name = self._names.setdefault(storage, f"input {len(self._names)}")
        else:
            name = "inserted"
        place = f"+{value.storage_offset()}" if value.storage_offset() else ""
        return f"{name}{place}{[*value.shape]}/{[*value.stride()]}:{value.dtype}"


class _UndispatchedCalls(TorchFunctionMode):
    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self._tracer = tracer

    def __torch_function__(
        self, function: Any, types: Any, arguments: Any = (), named: Any = None
    ) -> Any:
        if function in _UNDISPATCHED:
            self._tracer.escape(f"Tensor.{function.__name__}", tensors_in(arguments), "raw memory")
        if function in _SHARES_MEMORY:
            self._tracer.open(f"Tensor.{function.__name__}", tensors_in(arguments))
        return function(*arguments, **(named or {}))


def _written_tensors(function: Any, arguments: Any, named: dict[str, Any]) -> list[Tensor]:
    """The tensors that an operation writes to, by its schema: in-place ones, and out=."""
    values = {a.name: value for a, value in zip(function._schema.arguments, arguments)}  # noqa: B905
    values |= named
    return [
        tensor
        for argument in function._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
        for tensor in tensors_in(values.get(argument.name))
    ]


def _generator_states() -> list[Tensor]:
    """The states of the default generators, of every device that is in use."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if _cuda_in_use() else ())]


def _cuda_in_use() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_initialized()


def _flatten(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for part in value:
            yield from _flatten(part)
    elif isinstance(value, dict):
        for name, part in sorted(value.items()):
            yield name
            yield from _flatten(part)
    else:
        yield value
