"""FSDP2 for a base that no process has room for: each holds its part of every layer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from otter_cli.core.console import say
from otter_cli.core.errors import OtterError
from otter_cli.core.units import bytes_text

if TYPE_CHECKING:
    from otter_cli.training.group import Group
    from otter_cli.training.trainee import Trainee


def shard_base(trainee: Trainee, group: Group, device: str) -> None:
    """Shards the base's layers. The insertion is no part of them: it stays whole in each process,
    as data parallel training has it, and so do embedding and output head, whose rows signals read.

    Raises OtterError where no base is frozen, or no other process is there to hold the rest.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from otter_cli.training.trainee import GraftTrainee

    if not isinstance(trainee, GraftTrainee):
        raise OtterError(
            "--shard parts a frozen base, and a separate model has none", hint="leave --shard out"
        )
    if group.size == 1:
        raise OtterError(
            "--shard needs several processes",
            hint="torchrun --nproc-per-node 2 -m otter_cli train ... --shard",
        )
    base, shape = trainee.model.base, trainee.model.shape
    before = _bytes(base.parameters())
    mesh = init_device_mesh(torch.device(device).type, (group.size,))
    for layer in base.get_submodule(shape.family.layers).children():
        fully_shard(layer, mesh=mesh)
    say(
        f"each of {group.size} processes holds {bytes_text(_bytes(base.parameters()))} of the "
        f"base's {bytes_text(before)}"
    )


def held(parameter: Tensor) -> Tensor:
    """Of a parameter what this process has."""
    from torch.distributed.tensor import DTensor

    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def _bytes(parameters: Iterable[Tensor]) -> int:
    return sum(held(p).numel() * p.element_size() for p in parameters)
