"""Sharded trainables: each process holds a part of every trained tensor (FSDP2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


class ShardedInsertions(nn.Module):
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


def local_shard(tensor: Tensor) -> Tensor:
    """Of a tensor what this process has."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gather_full(tensor: Tensor) -> Tensor:
    """All of a tensor. Where processes hold parts of it, all of them must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as `like` is held; every process has it, so nothing is sent."""
    if not isinstance(like, DTensor):
        return tensor.to(like.device)
    placed = tensor.to(like.to_local().device)
    return distribute_tensor(placed, like.device_mesh, like.placements, src_data_rank=None)


def tensor_norms(tensors: Sequence[Tensor]) -> Tensor:
    """Of each tensor its norm, [n]; over all processes where they hold parts."""
    found = torch.stack([local_shard(tensor).norm() for tensor in tensors])
    if not isinstance(tensors[0], DTensor):
        return found
    squares = found.square()
    dist.all_reduce(squares)
    return squares.sqrt()
