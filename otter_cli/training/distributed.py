"""The processes that train together: one, or those that torchrun started.

All take the same steps on parts of the same batches; only the first writes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from otter_cli.core.errors import OtterError

if TYPE_CHECKING:
    from torch import Tensor

    from otter_cli.training.recipe import Recipe


T = TypeVar("T")


@dataclass(frozen=True)
class ProcessGroup:
    """This process and how many there are; of one alone nothing is exchanged."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Each tensor becomes its sum over the processes, in place, by one message: the inserted
        gradients are too thin to be worth overlapping with a backward pass."""
        import torch.distributed as dist

        if self.size == 1:
            return
        import torch

        message = torch.cat([tensor.flatten().float() for tensor in tensors])
        dist.all_reduce(message)
        for tensor, summed in zip(
            tensors, message.split([t.numel() for t in tensors]), strict=True
        ):
            tensor.copy_(summed.view(tensor.shape))

    def gather(self, value: Any) -> list[Any]:
        """Everybody's value, by rank, for everybody."""

        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Until all are here."""
        self.gather(None)

    def in_turn(self, make: Callable[[], T]) -> T:
        """What the first process makes, and then the others: they find its files on the disk."""
        if self.first:
            made = make()
            self.wait()
            return made
        self.wait()
        return make()

    def parts(self, rows: Sequence[int], each: int) -> list[tuple[list[int], float]]:
        """This process's rows of a batch in `each` parts, with the share of the batch that each is:
        losses are means over rows, so shares of them add up to the batch's.

        Every process has `each` parts, since all must take part in every exchange: where a batch at
        an epoch's end is too small, one of its rows fills in, with a share of 0."""
        count = self.size * each
        cuts = [len(rows) * i // count for i in range(count + 1)]
        mine = range(self.rank * each, (self.rank + 1) * each)
        parts = [list(rows[cuts[i] : cuts[i + 1]]) for i in mine]
        return [(part or [rows[0]], len(part) / len(rows)) for part in parts]


def check_batch_divides(recipe: Recipe, size: int) -> None:
    """Raises OtterError where a batch does not part evenly, in whole rows, among processes and
    accumulated passes."""
    parts = size * recipe.accumulate
    sizes = {"batch_size": recipe.batch_size} | {
        f"signals.{name}.batch_size": objective.batch_size
        for name, objective in recipe.signals.items()
        if objective.batch_size
    }
    for key, rows in sizes.items():
        if rows % parts:
            fitting = f"{rows // parts * parts or parts} or {(rows // parts + 1) * parts}"
            raise OtterError(
                f"{key} is {rows}, which {size} processes with accumulate: {recipe.accumulate} "
                f"cannot part in {parts}",
                hint=f"it counts the rows of all processes together: {fitting} would do",
            )


def world_size() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def join_process_group(device: str) -> Iterator[tuple[ProcessGroup, str]]:
    """Joins torchrun's group, where there is one; yields it, and this process's own device."""
    if world_size() == 1:
        yield ProcessGroup(), device
        return
    import torch
    import torch.distributed as dist

    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield ProcessGroup(dist.get_rank(), dist.get_world_size()), device
    finally:
        dist.destroy_process_group()
