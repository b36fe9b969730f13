"""Which rows make up the batch of a step: a function of the seed and the step alone.

So a resumed run asks for step n and gets what the interrupted one would have had, without a replay.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from otter_cli.core.errors import OtterError
from otter_cli.core.seeds import derive_seed

# Rows are sorted by length within pools of so many batches: enough for little padding, while
# what shares a batch still differs from epoch to epoch.
_BATCHES_PER_POOL = 32


class LengthBuckets:
    """Shuffled batches of rows of like length; each epoch holds every row once.

    `lengths` are the rows' token counts. The last batch of an epoch may be smaller.
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
        # Neighbouring steps ask for the same epoch: its order is kept, and remade at will.
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
            batches += split(pool.tolist(), self.batch_size)
        return [batches[i] for i in generator.permutation(len(batches))]


def by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Every row once, longest first: for evaluation, where a lack of memory shows at once."""
    longest_first = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    return split(longest_first, batch_size)


def split(rows: list[int], size: int) -> list[list[int]]:
    """Consecutive groups of `size`; the last may be smaller."""
    return [rows[i : i + size] for i in range(0, len(rows), size)]
