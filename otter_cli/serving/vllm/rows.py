"""Which rows of a step a stream that waits is computed for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from otter_cli.model.native.form import Pages


@dataclass
class Rows:
    """`places` of rows in the step (None: all of them, in order), and of each its sequence in the
    batch and how many slots of the cache it sees."""

    count: int
    places: Tensor | None
    sequence: Tensor
    seen: Tensor
    table: Tensor
    most: int
    pages: Pages | None = None

    @classmethod
    def of(cls, metadata: Any, positions: Tensor, asking: Sequence[int] | None) -> Rows | None:
        """The last token of each sequence that is asking, or with None every token; None where
        that is none. `metadata`: the engine's, of its attention on a processor."""
        starts, table = metadata.query_start_loc, metadata.block_table
        sequences, most = len(starts) - 1, metadata.max_seq_len
        places: Tensor | None
        if asking is None:
            sequence = torch.repeat_interleave(starts.diff()).long()
            places = torch.arange(len(sequence))
        else:
            sequence = _known(tuple(asking), sequences)
            if len(sequence) == sequences == len(positions):
                return cls(sequences, None, sequence, positions + 1, table, most)
            places = starts[1:][sequence].long() - 1
        if not len(places):
            return None
        return cls(len(places), places, sequence, positions[places] + 1, table, most)

    def taken(self, tensor: Tensor, dim: int = 0) -> Tensor:
        return tensor if self.places is None else tensor.index_select(dim, self.places)

    def paged(self, cache: Tensor) -> Pages:
        """How they read a cache [blocks, heads, slots, 2 * head_dim], as long as they live."""
        if self.pages is None:
            self.pages = Pages(
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
def _known(asking: tuple[int, ...], sequences: int) -> Tensor:
    """Those of the step, as a tensor: from one step to the next they mostly stay the same."""
    return torch.tensor([row for row in asking if row < sequences], dtype=torch.int64)
