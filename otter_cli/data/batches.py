"""Which rows make up a batch, and which positions of a batch a loss reads.

The rows of a step depend on the seed and the step alone, so a resumed run gets the batches that the
interrupted run would have had."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from otter_cli.core.errors import OtterError
from otter_cli.core.process import derive_seed

if TYPE_CHECKING:
    from torch import Tensor

    from otter_cli.data.datasets import Batch


# Rows are sorted by length within pools of this many batches. That leaves little padding, and the
# rows of a batch still differ from epoch to epoch.
_BATCHES_PER_POOL = 32


class LengthBuckets:
    """Shuffled batches of rows of similar length. Each epoch has every row once.

    `lengths`: the number of tokens of each row. One batch of an epoch may be smaller.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        if not lengths or batch_size < 1:
            raise OtterError(
                f"cannot make batches of {batch_size} from {len(lengths)} rows",
                hint="give at least one row, and a batch size of at least 1",
            )
        self.lengths = np.asarray(lengths)
        self.batch_size = batch_size
        self.seed = seed
        # Neighbouring steps share an epoch, so its order is cached.
        self._epoch = lru_cache(maxsize=2)(self._ordered)

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def rows(self, step: int) -> list[int]:
        """The rows of the batch of `step` (from 0, over all epochs)."""
        epoch, index = divmod(step, self.steps_per_epoch)
        return self._epoch(epoch)[index]

    def _ordered(self, epoch: int) -> list[list[int]]:
        generator = np.random.default_rng(derive_seed(self.seed, "batches", epoch))
        shuffled = generator.permutation(len(self.lengths))
        batches: list[list[int]] = []
        pool_size = self.batch_size * _BATCHES_PER_POOL
        for start in range(0, len(shuffled), pool_size):
            pool = shuffled[start : start + pool_size]
            pool = pool[np.argsort(self.lengths[pool], kind="stable")]
            batches += split_into_batches(pool.tolist(), self.batch_size)
        return [batches[i] for i in generator.permutation(len(batches))]


def longest_first_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Every row once, longest first, so that an evaluation that lacks memory fails at once."""
    longest_first = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    return split_into_batches(longest_first, batch_size)


def split_into_batches(rows: list[int], size: int) -> list[list[int]]:
    """Consecutive groups of `size`; the last may be smaller."""
    return [rows[i : i + size] for i in range(0, len(rows), size)]


# Row and column indices of N positions in a batch, [N] each.
Positions = tuple["Tensor", "Tensor"]


def last_tokens(batch: Batch) -> Positions:
    """Each row's last real token."""
    import torch

    return torch.arange(len(batch.last), device=batch.last.device), batch.last


def real_tokens(batch: Batch) -> Positions:
    """Every position without padding, row by row."""
    rows, columns = batch.attention_mask.nonzero(as_tuple=True)
    return rows, columns


def next_tokens(batch: Batch) -> tuple[Positions, Tensor]:
    """Every position with a next real token, and the ids of these tokens, [N, 1]."""
    rows, columns = batch.attention_mask[:, 1:].nonzero(as_tuple=True)
    return (rows, columns), batch.input_ids[rows, columns + 1, None]


def weighted_mean_over_texts(each: Tensor, at: Positions, last: Tensor) -> Tensor:
    """The mean over texts of the weighted sums of `each` [N] at positions `at`, up to each text's
    `last`. Weights grow with position, with sum one per text."""
    rows, columns = at
    return (each * prefix_weights(columns, last[rows])).sum() / len(last)


def prefix_weights(columns: Tensor, last: Tensor) -> Tensor:
    """Weights 2 t / (n (n + 1)) of a text's prefixes: linear in length, with sum one (RAD, arXiv
    2310.09520)."""
    return 2 * (columns + 1) / ((last + 1) * (last + 2))
