"""FSDP2 for a base that no process has room for: each holds its part of every layer, and of the
insertion with its gradients and the optimiser's moments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from otter_cli.core.console import say
from otter_cli.core.errors import OtterError
from otter_cli.core.units import bytes_text

if TYPE_CHECKING:
    from otter_cli.training.group import Group
    from otter_cli.training.recipe import Recipe
    from otter_cli.training.trainee import Trainee


class Shards(nn.Module):
    """The insertions, sharded by themselves: no layer of the base calls them, so they are made
    whole for what is read of them, and parted again by its backward pass."""

    def __init__(self, insertions: nn.Module, mesh: Any) -> None:
        super().__init__()
        self.insertions = insertions
        self.sharded: FSDPModule = fully_shard(self, mesh=mesh)
        # Losses are shares of the whole batch's: gradients add up.
        self.sharded.set_gradient_divide_factor(1.0)
        self.sharded.set_force_sum_reduction_for_comms(True)

    def forward(self, read: Callable[[], Tensor]) -> Tensor:
        return read().clone()  # a view could lose the hook that gathers for its backward pass

    def read(self, read: Callable[[], Tensor]) -> Tensor:
        """What `read` gives with whole insertions. Without gradients it would pack their weights
        into storages that no shard is gathered into, so it always builds a graph."""
        with torch.enable_grad():
            found: Tensor = self(read)
        return found if torch.is_grad_enabled() else found.detach()

    def part(self) -> None:
        """What was made whole is gathered anew next time."""
        self.sharded.reshard()

    def make_whole(self) -> None:
        self.part()
        self.sharded.unshard()


def shard(trainee: Trainee, recipe: Recipe, group: Group, device: str) -> Shards:
    """Shards the base's layers and the insertions. Embedding and output head, whose rows signals
    read, stay whole in each process.

    Raises OtterError where no base is frozen, torch is too old, weights or an optimiser's matrices
    cannot be parted, or no other process is there to hold the rest.
    """
    from otter_cli.training.trainee import GraftTrainee

    if not isinstance(trainee, GraftTrainee):
        raise OtterError(
            "--shard parts a frozen base, and a separate model has none", hint="leave --shard out"
        )
    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        raise OtterError(
            f"--shard adds gradients up, which FSDP2 of torch {torch.__version__} cannot",
            hint="a later torch can: pip install -U torch; or leave --shard out",
        )
    if group.size == 1:
        raise OtterError(
            "--shard needs several processes",
            hint="torchrun --nproc-per-node 2 -m otter_cli train ... --shard",
        )
    if recipe.quantize is not None:
        raise OtterError(
            f"--shard parts the file's own weights, and quantize: {recipe.quantize} packs them",
            hint="--set quantize=null, or leave --shard out: each is a way to need less memory",
        )
    if recipe.optimizer == "muon":
        raise OtterError(
            "optimizer: muon orthogonalises whole matrices, and --shard parts them",
            hint="--set optimizer=adamw, or leave --shard out",
        )
    base, shape = trainee.model.base, trainee.model.shape
    inserted = [parameter for _, parameter in trainee.model.inserted_parameters()]
    before = _bytes(base.parameters()), _bytes(inserted)
    mesh = init_device_mesh(torch.device(device).type, (group.size,))
    for layer in base.get_submodule(shape.family.layers).children():
        fully_shard(layer, mesh=mesh)
    shards = Shards(trainee.model.insertions, mesh)
    trainee.train_shards(shards)
    after = _bytes(base.parameters()), _bytes(p for _, p in trainee.model.inserted_parameters())
    say(
        f"each of {group.size} processes holds {bytes_text(after[0])} of the base's "
        f"{bytes_text(before[0])} and {bytes_text(after[1])} of the insertion's "
        f"{bytes_text(before[1])}"
    )
    return shards


def held(tensor: Tensor) -> Tensor:
    """Of a tensor what this process has."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor. Where processes hold parts of it, all of them must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def parted(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as `like` is held; every process has it, so nothing is sent."""
    if not isinstance(like, DTensor):
        return tensor.to(like.device)
    placed = tensor.to(like.to_local().device)
    return distribute_tensor(placed, like.device_mesh, like.placements, src_data_rank=None)


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """Of each tensor its norm, [n]; over all processes where they hold parts."""
    found = torch.stack([held(tensor).norm() for tensor in tensors])
    if not isinstance(tensors[0], DTensor):
        return found
    squares = found.square()
    dist.all_reduce(squares)
    return squares.sqrt()


def _bytes(parameters: Iterable[Tensor]) -> int:
    return sum(held(p).numel() * p.element_size() for p in parameters)
