"""The tracer on small modules: each way of an inserted value into the base is a leak."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from otter_cli.verification.trace import Trace, Tracer

SECRET = torch.full((4,), 7.0)


class Base(nn.Module):
    """Two modules of a base; `between` is where a fault is planted."""

    def __init__(self, between: Callable[[Tensor], Tensor | None]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.first.register_forward_hook(lambda module, inputs, output: between(output))
        self.register_buffer("scale", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) * self.scale)


def trace(
    between: Callable[[Tensor], Tensor | None], inside: Callable[[], bool] = lambda: False
) -> Trace:
    model = Base(between)
    with torch.no_grad(), Tracer(model, [SECRET], inside) as tracer:
        model(torch.ones(2, 4))
    return tracer.trace


def inside(between: Callable[[Tensor], Tensor | None]) -> Trace:
    """As `trace`, with the fault's operations counted as the insertion's."""
    now = [False]

    def flagged(output: Tensor) -> Tensor | None:
        now[0] = True
        try:
            return between(output)
        finally:
            now[0] = False

    return trace(flagged, lambda: now[0])


def nothing(output: Tensor) -> None:
    return None


def test_a_base_alone_has_no_leak_and_repeats_itself() -> None:
    first, second = trace(nothing), trace(nothing)
    assert first.leak is None and first.inserted == 0
    assert first.operations == second.operations
    modules = [operation.module for operation in first.operations if "ones" not in operation.name]
    assert list(dict.fromkeys(modules)) == ["first", "", "second"]


@pytest.mark.parametrize(
    "read",
    [
        lambda h: h + SECRET,
        lambda h: h + SECRET[1:].sum(),
        lambda h: torch.cat([h, SECRET.view(1, 4)])[:2],
        lambda h: h.index_put((torch.tensor([0]),), SECRET),
        lambda h: torch.add(h, SECRET, out=torch.empty(2, 4)),
        lambda h: h.copy_(SECRET.expand(2, 4)),
        lambda h: h.add_(SECRET.mul(1e-30)),
        lambda h: torch.where(SECRET.detach() > 8, h + 1, h),
    ],
)
def test_any_operation_that_reads_is_a_leak(read: Callable[[Tensor], Tensor]) -> None:
    leak = trace(read).leak
    assert leak is not None and leak.module == "first"
    assert leak.what == "reads what the insertion made"


def test_the_first_operation_is_named() -> None:
    leak = trace(lambda h: (h * 2 + SECRET).relu()).leak
    assert leak is not None and leak.operation == "aten.add.Tensor"


@pytest.mark.parametrize("read", [lambda h: SECRET.expand(2, 4), lambda h: h + SECRET])
def test_what_the_insertion_makes_must_not_come_back(read: Callable[[Tensor], Tensor]) -> None:
    leak = inside(read).leak
    assert leak is not None and leak.operation == "the output" and leak.module == "first"


def test_even_what_it_makes_of_the_base_alone_must_not() -> None:
    leak = inside(lambda h: h * 1.0).leak
    assert leak is not None and "what the insertion made" in leak.what


@pytest.mark.parametrize(
    "write",
    [
        lambda h: h.add_(1),
        lambda h: h[0].zero_(),
        lambda h: h.view(8).mul_(SECRET[0]),
        lambda h: torch.mul(SECRET, 2, out=h[0]),
        lambda h: torch._foreach_add_([h], 1.0),
    ],
)
def test_writing_to_the_base_from_inside_is_a_leak(write: Callable[[Tensor], Any]) -> None:
    def work(h: Tensor) -> None:
        write(h)

    leak = inside(work).leak
    assert leak is not None and leak.what == "writes to a tensor of the base's"


def test_writing_to_its_own_tensors_is_none() -> None:
    def work(h: Tensor) -> None:
        own = torch.zeros(2, 4)
        own.add_(h).mul_(SECRET)
        own[:, 0].copy_(h[:, 1])
        counter = torch.tensor(0)
        counter.add_(1)
        int(counter)  # no inserted value: a length, say

    found = inside(work)
    assert found.leak is None and found.inserted > 5


@pytest.mark.parametrize(
    "escape",
    [
        lambda: float(SECRET.sum()),
        lambda: bool((SECRET > 1).any()),
        lambda: SECRET.tolist(),
        lambda: SECRET.numpy(),
        lambda: SECRET.nonzero(),
        lambda: torch.equal(SECRET, SECRET),
        lambda: SECRET[SECRET > 1],
        lambda: SECRET.data_ptr(),
    ],
)
@pytest.mark.parametrize("run", [inside, trace])
def test_numbers_and_shapes_made_of_inserted_values_are_leaks(
    escape: Callable[[], Any], run: Callable[[Callable[[Tensor], None]], Trace]
) -> None:
    def use(h: Tensor) -> None:
        escape()

    assert run(use).leak is not None


def test_numbers_of_the_base_may_leave() -> None:
    assert trace(lambda h: float(h.sum()) and None).leak is None


def test_random_numbers_of_the_base_s_generator_are_a_leak() -> None:
    leak = inside(lambda h: torch.rand(2) is None or None).leak
    assert leak is not None and "draws random numbers" in leak.what


def test_random_numbers_of_its_own_are_none_nor_is_what_only_might_draw() -> None:
    def work(h: Tensor) -> None:
        torch.rand(2, generator=torch.Generator().manual_seed(1))
        heads = SECRET.view(1, 1, 4, 1).expand(1, 1, 4, 8)
        nn.functional.scaled_dot_product_attention(heads, heads, heads, dropout_p=0.0)

    assert inside(work).leak is None


def test_freed_memory_that_the_base_gets_again_is_not_taken_for_inserted() -> None:
    def work(h: Tensor) -> None:
        for _ in range(300):
            SECRET * 2
        gc.collect()

    found, plain = inside(work), trace(nothing)
    assert found.leak is None and found.operations == plain.operations


def test_the_hooks_are_gone_afterwards_even_after_an_error() -> None:
    def fail(h: Tensor) -> None:
        raise ValueError("on purpose")

    model = Base(fail)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    with pytest.raises(ValueError, match="on purpose"), Tracer(model):
        model(torch.ones(2, 4))
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks


def test_a_long_trace_neither_mixes_up_storages_nor_remembers_dead_ones() -> None:
    tracer = Tracer(Base(lambda output: None))
    numbers = [tracer.identity(torch.empty(4)) for _ in range(1000)]
    assert len(set(numbers)) == 1000
    assert len(tracer.seen) < 100
