"""Which rows of an engine step a deferred stream is computed for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from otter_cli.accel.native_library import PagedCache


@dataclass
class StepRows:
    """`places` of rows in the step (None: all of them, in order), and of each its sequence in the
    batch and how many slots of the cache it sees."""

    count: int
    places: Tensor | None
    sequence: Tensor
    seen: Tensor
    table: Tensor
    most: int
    pages: PagedCache | None = None

    @classmethod
    def of(
        cls, metadata: Any, positions: Tensor, asking: tuple[int, ...] | None
    ) -> StepRows | None:
        """The last token of each sequence that is asking, or with None every token; None where
        that is none. `metadata`: the engine's, of its attention on a processor."""
        starts, table = metadata.query_start_loc, metadata.block_table
        if asking is None:
            sequence = torch.repeat_interleave(starts.diff()).long()
        else:
            sequence = _requested_rows(asking, len(starts) - 1)
        places, count = None, len(sequence)
        if count < len(positions):
            places = torch.arange(count) if asking is None else starts[1:][sequence].long() - 1
        if not count:
            return None
        seen = (positions if places is None else positions[places]) + 1
        return cls(count, places, sequence, seen, table, metadata.max_seq_len)

    def taken(self, tensor: Tensor, dim: int = 0) -> Tensor:
        return tensor if self.places is None else tensor.index_select(dim, self.places)

    def paged(self, cache: Tensor) -> PagedCache:
        """How they read a cache [blocks, heads, slots, 2 * head_dim], as long as they live."""
        if self.pages is None:
            self.pages = PagedCache(
                size=cache.shape[2],
                half=cache.dtype == torch.bfloat16,
                of_block=cache.stride(0),
                of_head=cache.stride(1),
                of_sequence=self.table.stride(0),
                table=self.table.data_ptr(),
                sequence=self.sequence.data_ptr(),
                seen=self.seen.data_ptr(),
            )
        return self.pages


@lru_cache(maxsize=64)
def _requested_rows(asking: tuple[int, ...], sequences: int) -> Tensor:
    """Those of the step, as a tensor: from one step to the next they mostly stay the same."""
    return torch.tensor([row for row in asking if row < sequences], dtype=torch.int64)
