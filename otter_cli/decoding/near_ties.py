"""Where a step of many tokens and one of a single token may round a greedy choice apart."""

from __future__ import annotations

import torch
from torch import Tensor

from otter_cli.decoding.rows import Rows
from otter_cli.decoding.types import NearTie

# In units of the last place of the largest logit: well above what the two steps differ by.
_PLACES = 64


def bound(logits: Tensor) -> Tensor:
    """The gap [...] below which two logits of [..., vocab] count as tied."""
    return _PLACES * torch.finfo(logits.dtype).eps * logits.abs().amax(-1).double()


class NearTies:
    """Notes them in the generations of `rows`."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def note(self, logits: Tensor, accepted: Tensor) -> None:
        """By the logits [rows, m, vocab] along the accepted path: each of the first `accepted` + 1
        chose the token after it."""
        top = logits.topk(2, -1)
        gaps = (top.values[..., 0].double() - top.values[..., 1].double()).cpu()
        tied = gaps < bound(logits).cpu()
        if not bool(tied.any()):
            return
        for row, generation in enumerate(self.rows.rows):
            # The token after the last accepted one is pending: it comes next.
            first = len(generation.tokens) - self.rows.taken[row] + 1
            # Of a row that has ended the pending one never does.
            written = len(generation.tokens) + self.rows.open[row]
            for m in range(min(int(accepted[row]) + 1, self.rows.taken[row])):
                if tied[row, m] and first + m < written:
                    best, second = top.indices[row, m].tolist()
                    tie = NearTie(first + m, best, second, float(gaps[row, m]))
                    generation.near_ties.append(tie)
