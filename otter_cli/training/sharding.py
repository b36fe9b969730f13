"""Sharding by FSDP2: each process holds a part of the frozen base and of the insertions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from otter_cli.core.console import say
from otter_cli.core.errors import OtterError
from otter_cli.core.formatting import bytes_text
from otter_cli.training.distributed import ProcessGroup

if TYPE_CHECKING:
    from otter_cli.model.otter import OtterForCausalLM
    from otter_cli.training.recipe import Recipe


def shard_graft(
    model: OtterForCausalLM, recipe: Recipe, group: ProcessGroup, device: str
) -> ShardedInsertions:
    """Shards the base's layers and the insertions. Embedding and output head stay whole in each
    process, since signals read their rows.

    Raises OtterError where torch is too old, the weights or the optimiser's matrices cannot be
    sharded, or there is one process alone.
    """
    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        raise OtterError(
            f"--shard sums gradients, which FSDP2 of torch {torch.__version__} cannot do",
            hint="use a later torch: pip install -U torch; or leave --shard out",
        )
    if group.size == 1:
        raise OtterError(
            "--shard needs several processes",
            hint="torchrun --nproc-per-node 2 -m otter_cli train ... --shard",
        )
    if recipe.quantize is not None:
        raise OtterError(
            f"--shard divides the weights of the file, and quantize: {recipe.quantize} packs them",
            hint="--set quantize=null, or leave --shard out: each is a way to need less memory",
        )
    if recipe.optimizer == "muon":
        raise OtterError(
            "optimizer: muon orthogonalises whole matrices, and --shard divides them",
            hint="--set optimizer=adamw, or leave --shard out",
        )
    before = _local_bytes(model)
    mesh = init_device_mesh(torch.device(device).type, (group.size,))
    for layer in model.base.get_submodule(model.shape.family.layers).children():
        fully_shard(layer, mesh=mesh)
    shards = ShardedInsertions(model.insertions, mesh)
    after = _local_bytes(model)
    say(
        f"each of {group.size} processes holds {bytes_text(after[0])} of the base's "
        f"{bytes_text(before[0])} and {bytes_text(after[1])} of the insertion's "
        f"{bytes_text(before[1])}"
    )
    return shards


def _local_bytes(model: OtterForCausalLM) -> tuple[int, int]:
    """Bytes of the base and of the insertions in this process."""
    inserted = [parameter for _, parameter in model.inserted_parameters()]
    base, insertions = (
        sum(local_shard(p).numel() * p.element_size() for p in parameters)
        for parameters in (model.base.parameters(), inserted)
    )
    return base, insertions


class ShardedInsertions(nn.Module):
    """The insertions, sharded as one unit. No layer of the base calls them, so they are unsharded
    for the forward that reads them, and resharded after its backward pass."""

    def __init__(self, insertions: nn.Module, mesh: Any) -> None:
        super().__init__()
        self.insertions = insertions
        self.sharded: FSDPModule = fully_shard(self, mesh=mesh)
        # Each loss is a share of the batch's loss, so gradients are summed and not averaged.
        self.sharded.set_gradient_divide_factor(1.0)
        self.sharded.set_force_sum_reduction_for_comms(True)

    def forward(self, read: Callable[[], Tensor]) -> Tensor:
        return read().clone()  # a view could lose the hook that unshards for the backward pass

    def with_full_parameters(self, read: Callable[[], Tensor]) -> Tensor:
        """Calls `read` with unsharded insertions. It always builds a graph: without gradients the
        insertions would pack their weights into storages that no shard is gathered into."""
        with torch.enable_grad():
            values: Tensor = self(read)
        return values if torch.is_grad_enabled() else values.detach()

    def reshard(self) -> None:
        """Frees what was unsharded. The next read gathers it anew."""
        self.sharded.reshard()

    def unshard(self) -> None:
        self.reshard()
        self.sharded.unshard()


def local_shard(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gather_full(tensor: Tensor) -> Tensor:
    """The full tensor. Where it is sharded, all processes must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A full tensor, sharded as `like` is. Every process has the tensor, so nothing is sent."""
    if not isinstance(like, DTensor):
        return tensor.to(like.device)
    placed = tensor.to(like.to_local().device)
    return distribute_tensor(placed, like.device_mesh, like.placements, src_data_rank=None)


def tensor_norms(tensors: Sequence[Tensor]) -> Tensor:
    """The norm of each tensor, [n]; over all processes where tensors are sharded."""
    norms = torch.stack([local_shard(tensor).norm() for tensor in tensors])
    if not isinstance(tensors[0], DTensor):
        return norms
    squares = norms.square()
    dist.all_reduce(squares)
    return squares.sqrt()
