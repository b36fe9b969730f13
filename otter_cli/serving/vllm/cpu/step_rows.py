"""Which rows of an engine step a deferred stream is computed for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from otter_cli.accel.native_abi import PagedCache


@dataclass
class StepRows:
    """The rows (tokens) of an engine step that are computed. `places`: indices of the rows in the
    step; None for all of them, in order. `sequence` and `visible_slots` [count]: of each row its
    sequence in the batch, and how many slots of the cache it sees. `table`: the engine's blocks by
    sequence. `longest`: the most slots of a sequence."""

    count: int
    places: Tensor | None
    sequence: Tensor
    visible_slots: Tensor
    table: Tensor
    longest: int
    pages: PagedCache | None = None

    @classmethod
    def of(
        cls, metadata: Any, positions: Tensor, requested: tuple[int, ...] | None
    ) -> StepRows | None:
        """The last token of each `requested` sequence; with None, every token. None where that is
        no token. `metadata` is that of the engine's CPU attention."""
        starts, table = metadata.query_start_loc, metadata.block_table
        if requested is None:
            sequence = torch.repeat_interleave(starts.diff()).long()
        else:
            sequence = _requested_sequences(requested, len(starts) - 1)
        places, count = None, len(sequence)
        if count < len(positions):
            places = torch.arange(count) if requested is None else starts[1:][sequence].long() - 1
        if not count:
            return None
        visible_slots = (positions if places is None else positions[places]) + 1
        return cls(count, places, sequence, visible_slots, table, metadata.max_seq_len)

    def select(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """The rows of a tensor of the whole step."""
        return tensor if self.places is None else tensor.index_select(dim, self.places)

    def pages_for(self, cache: Tensor) -> PagedCache:
        """How native code reads a cache [blocks, heads, slots, 2 * head_dim] for these rows. It
        holds addresses of this object's tensors, and is valid as long as they live."""
        if self.pages is None:
            self.pages = PagedCache(
                size=cache.shape[2],
                half=cache.dtype == torch.bfloat16,
                of_block=cache.stride(0),
                of_head=cache.stride(1),
                of_sequence=self.table.stride(0),
                table=self.table.data_ptr(),
                sequence=self.sequence.data_ptr(),
                seen=self.visible_slots.data_ptr(),
            )
        return self.pages


@lru_cache(maxsize=64)
def _requested_sequences(requested: tuple[int, ...], sequences: int) -> Tensor:
    """The requested sequences of a step, cached: from one step to the next they rarely change."""
    return torch.tensor([row for row in requested if row < sequences], dtype=torch.int64)
