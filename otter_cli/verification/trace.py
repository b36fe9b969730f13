"""A trace of every operation that a forward dispatches, and of where inserted values go.

The tracer follows storages, not tensors, so views and in-place writes count as well. A storage that
an operation of the insertion made is *foreign*. One that depends on an inserted parameter is
*tainted*. The base is untouched if its own operations read neither, if the insertion writes to no
storage of the base and draws nothing from its random generator, and if no tainted value becomes a
Python number.

In layers that are not `compared`, the base's operations are followed but not recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Called with the tensors that enter and leave a module: ("input" or "output", tensors).
ModuleWatcher = Callable[[str, list[Tensor]], None]


class ModulePath:
    """`current` is the name of the innermost module that is running, "" outside of all modules."""

    def __init__(self) -> None:
        self._stack: list[str] = []

    @property
    def current(self) -> str:
        return self._stack[-1] if self._stack else ""

    @contextmanager
    def following(self, model: nn.Module, watch: ModuleWatcher | None = None) -> Iterator[None]:
        """Inside, `current` follows the calls of `model`, and `watch` sees what modules
        exchange."""

        def enter(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
            self._stack.append(name)
            if watch:
                watch("input", list(tensors_in((args, kwargs))))

        def leave(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if watch:
                watch("output", list(tensors_in(output)))
            self._stack.pop()

        with ExitStack() as stack:
            for name, module in model.named_modules():
                # These hooks run around all others, whose operations count as this module's.
                before = module.register_forward_pre_hook(
                    partial(enter, name), prepend=True, with_kwargs=True
                )
                after = module.register_forward_hook(
                    partial(leave, name), with_kwargs=True, always_call=True
                )
                stack.callback(before.remove)
                stack.callback(after.remove)
            yield


def _leaves(value: Any) -> Iterator[Any]:
    """The values in nested tuples, lists and dicts."""
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        yield value
        return
    for part in value:
        yield from _leaves(part)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Tensors in nested tuples, lists and dicts. Caches are not searched, because they may hold
    layers of both the base and the insertion."""
    return (leaf for leaf in _leaves(value) if isinstance(leaf, Tensor))


# Ways to read a tensor that dispatch no operation.
_UNDISPATCHED = {
    torch.Tensor.numpy,
    torch.Tensor.tolist,
    torch.Tensor.__array__,
    torch.Tensor.__dlpack__,
    torch.Tensor.data_ptr,
}
# Those that share its memory, where a write is no operation either.
_SHARES_MEMORY = {torch.Tensor.numpy, torch.Tensor.__array__, torch.Tensor.__dlpack__}
_FEWEST_STORAGES = 16  # that are remembered before dead ones are removed
_SEEDED = torch.Tag.nondeterministic_seeded
_VALUE_DEPENDENT = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


@dataclass(frozen=True)
class Leak:
    """Where an inserted value reaches the base: the operation, its module, and how."""

    operation: str
    module: str
    what: str

    def __str__(self) -> str:
        return f"{self.operation} in {self.module or 'no module of the base'} {self.what}"


@dataclass(frozen=True)
class Operation:
    """One operation of the base. `inputs` describes the storages that it read, and their layout."""

    name: str
    module: str
    inputs: str

    def __str__(self) -> str:
        return f"{self.name} in {self.module or 'no module'} of {self.inputs}"


@dataclass
class Trace:
    """The recorded operations of the base in order, the number of `inserted` operations and of
    those of the base that were not recorded (`passed`), and the first leak."""

    operations: list[Operation] = field(default_factory=list)
    inserted: int = 0
    passed: int = 0
    leak: Leak | None = None


class Tracer(TorchDispatchMode):
    """Traces `model` while active.

    `inserted`: the inserted tensors, None for a model without an insertion. `inside` says whether
    the insertion runs now. `compared` says whether the operations of a module are recorded.
    """

    def __init__(
        self,
        model: nn.Module,
        inserted: Iterable[Tensor] | None = None,
        inside: Callable[[], bool] = lambda: False,
        compared: Callable[[str], bool] = lambda module: True,
    ) -> None:
        super().__init__()
        self.trace = Trace()
        self._compared, self._compared_modules = compared, dict[str, bool]()
        self._model, self._inside, self._modules = model, inside, ModulePath()
        # A number for each storage, by address. The weak reference keeps the address from being
        # reused.
        self.seen: dict[int, tuple[StorageWeakRef, int]] = {}
        self._numbers = count()
        self._most_storages = _FEWEST_STORAGES
        # Storages by number: names of the base's, those of unrecorded operations, and the
        # insertion's.
        self._names: dict[int, str] = {}
        self._unnamed: set[int] = set()
        self._foreign: set[int] = set()
        self._tainted: set[int] = set()
        # Without an insertion there is nothing to follow in layers that are not compared.
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

    def left_tensor(self, operation: str, tensors: Iterable[Tensor], how: str) -> None:
        """Called where values leave `tensors` in another way than as tensors."""
        if not self._tainted.isdisjoint(map(self.identity, tensors)):
            self._leak(operation, f"turns an inserted value into {how}")

    def opened_memory(self, operation: str, tensors: Iterable[Tensor]) -> None:
        """Called where the memory of `tensors` becomes writable without an operation."""
        if self._inside() and any(map(self._is_known, map(self.identity, tensors))):
            self._leak(operation, "opens the memory of a tensor of the base's")

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self._follows and not self._is_recorded():
            return function(*args, **kwargs)
        inputs = list(tensors_in((args, kwargs)))
        written = [self.identity(tensor) for tensor in _written_tensors(function, args, kwargs)]
        name = str(function)
        generators = _generator_states() if self._inside() and _SEEDED in function.tags else []
        output = function(*args, **kwargs)
        if generators and not all(map(torch.equal, generators, _generator_states())):
            # The base's next random numbers are different then.
            self._leak(name, "draws random numbers from the base's generator")
        if any(tag in function.tags for tag in _VALUE_DEPENDENT):
            self.left_tensor(name, inputs, "a number or a shape")
        read = list(map(self.identity, inputs))
        made = list(map(self.identity, tensors_in(output)))
        if self._inside():
            self._inserted_operation(name, read, written, made)
        else:
            self._base_operation(name, (args, sorted(kwargs.items())), read, made)
        return output

    def _is_recorded(self) -> bool:
        module = self._modules.current
        if module not in self._compared_modules:
            self._compared_modules[module] = self._compared(module)
        return self._compared_modules[module]

    def _inserted_operation(
        self, name: str, read: list[int], written: list[int], made: list[int]
    ) -> None:
        self.trace.inserted += 1
        if any(map(self._is_known, written)):
            self._leak(name, "writes to a tensor of the base's")
        # A storage that no operation of the base has used belongs to the insertion.
        own = {storage for storage in (*read, *made) if not self._is_known(storage)}
        if not self._tainted.isdisjoint(read):
            self._tainted |= own.intersection((*written, *made))
        self._foreign |= own

    def _base_operation(self, name: str, arguments: Any, read: list[int], made: list[int]) -> None:
        recorded, index = self._is_recorded(), len(self.trace.operations)
        if recorded:
            inputs = ", ".join(map(self._describe, _leaves(arguments)))
            self.trace.operations.append(Operation(name, self._modules.current, inputs))
        else:
            self.trace.passed += 1
        if not all(map(self._is_base, read)):
            self._leak(name, "reads what the insertion made")
            self._foreign.update(made)
        if recorded:
            for position, storage in enumerate(made):
                if self._is_base(storage):
                    self._names.setdefault(storage, f"{index}.{position}")
        else:
            self._unnamed.update(filter(self._is_base, (*read, *made)))

    def _is_known(self, storage: int) -> bool:
        """Whether the storage is a parameter of the base, or an operation of the base has used
        it."""
        return storage in self._names or storage in self._unnamed

    def _is_base(self, storage: int) -> bool:
        return storage not in self._foreign and storage not in self._tainted

    def _watch(self, side: str, tensors: list[Tensor]) -> None:
        if not self._inside() and not all(self._is_base(self.identity(t)) for t in tensors):
            self._leak(f"the {side}", "is what the insertion made")

    def _leak(self, operation: str, what: str) -> None:
        if self.trace.leak is None:
            self.trace.leak = Leak(operation, self._modules.current, what)

    def identity(self, tensor: Tensor) -> int:
        """A number for the tensor's storage that no other storage gets, before or after."""
        reference = StorageWeakRef(tensor.untyped_storage())
        if reference.cdata not in self.seen:
            if len(self.seen) >= self._most_storages:
                # Dead references fragment the heap, so they are removed. Looking at all references
                # takes long, so this happens only after an eighth more have come.
                self.seen = {k: v for k, v in self.seen.items() if not v[0].expired()}
                alive = len(self.seen)
                self._most_storages = alive + max(_FEWEST_STORAGES, alive // 8)
            self.seen[reference.cdata] = reference, next(self._numbers)
        return self.seen[reference.cdata][1]

    def _describe(self, value: Any) -> str:
        if not isinstance(value, Tensor):
            # The text of a generator and similar objects would contain a memory address.
            return repr(value) if type(value).__module__ != "torch._C" else type(value).__name__
        storage = self.identity(value)
        if self._is_base(storage):
            name = self._names.setdefault(storage, f"input {len(self._names)}")
        else:
            name = "inserted"
        offset = f"+{value.storage_offset()}" if value.storage_offset() else ""
        return f"{name}{offset}{[*value.shape]}/{[*value.stride()]}:{value.dtype}"


class _UndispatchedCalls(TorchFunctionMode):
    """Shows the tracer the calls that dispatch no operation."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self._tracer = tracer

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function in _UNDISPATCHED:
            name = f"Tensor.{function.__name__}"
            self._tracer.left_tensor(name, tensors_in(args), "raw memory")
            if function in _SHARES_MEMORY:
                self._tracer.opened_memory(name, tensors_in(args))
        return function(*args, **(kwargs or {}))


def _written_tensors(function: Any, args: Any, kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that an operation writes to, by its schema: in-place ones, and out=."""
    values = {a.name: value for a, value in zip(function._schema.arguments, args)}  # noqa: B905
    values |= kwargs
    return [
        tensor
        for argument in function._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
        for tensor in tensors_in(values.get(argument.name))
    ]


def _generator_states() -> list[Tensor]:
    """The states of the default generators of every device that is in use."""
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if cuda else ())]
