"""The processes that train together: one, or those that torchrun started.

All take the same steps, each on its part of every batch. Only the first one writes files. Torch is
imported late: a recipe is read and refused without it."""

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
    """This process and the number of processes. A single process exchanges nothing."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor by its sum over the processes, in one message. Gradients of an
        insertion are too small for an overlap with the backward pass to pay."""
        import torch
        import torch.distributed as dist

        if self.size == 1:
            return
        message = torch.cat([tensor.flatten().float() for tensor in tensors])
        dist.all_reduce(message)
        for tensor, summed in zip(
            tensors, message.split([t.numel() for t in tensors]), strict=True
        ):
            tensor.copy_(summed.view(tensor.shape))

    def all_gather(self, value: Any) -> list[Any]:
        """The value of every process, by rank."""
        import torch.distributed as dist

        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Waits until every process is here."""
        self.all_gather(None)

    def first_then_others(self, make: Callable[[], T]) -> T:
        """Runs `make` in the first process, then in the others, which find its files on disk."""
        if not self.is_first:
            self.barrier()
            return make()
        made = make()
        self.barrier()
        return made

    def micro_batches(self, rows: Sequence[int], each: int) -> list[tuple[list[int], float]]:
        """This process's rows of a batch in `each` parts, each with its share of the batch. Losses
        are means over rows, so the losses times their shares add up to the loss of the batch.

        Every process gets `each` parts, since all processes take part in every exchange. Where the
        last batch of an epoch is too small, one of its rows fills a part, with a share of 0."""
        count = self.size * each
        cuts = [len(rows) * i // count for i in range(count + 1)]
        own = range(self.rank * each, (self.rank + 1) * each)
        parts = [list(rows[cuts[i] : cuts[i + 1]]) for i in own]
        return [(part or [rows[0]], len(part) / len(rows)) for part in parts]


def check_batch_divides(recipe: Recipe, size: int) -> None:
    """Raises OtterError where a batch is not a multiple of the processes times the accumulated
    passes."""
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
                f"cannot divide into {parts}",
                hint=f"it counts the rows of all processes together; take {fitting}",
            )


def world_size() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def join_process_group(device: str) -> Iterator[tuple[ProcessGroup, str]]:
    """Joins the group that torchrun started, if any. Yields it and the device of this process."""
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
