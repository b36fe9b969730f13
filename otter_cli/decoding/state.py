"""What a pass leaves of the positions that it was given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class State:
    """Final states of positions: the base's [rows, n, d], the insertions' [rows, n, D]."""

    base: Tensor
    inserted: dict[str, Tensor]

    def at(self, index: Tensor) -> State:
        """One position a row, `index` [rows]: states [rows, 1, ...]."""
        rows = torch.arange(len(index), device=index.device)
        return self._each(lambda states: states[rows, index, None])

    def last(self) -> State:
        return self._each(lambda states: states[:, -1:])

    def rows(self, index: Tensor) -> State:
        """The states of the rows `index`, which may repeat."""
        return self._each(lambda states: states[index])

    def where(self, condition: Tensor, other: State) -> State:
        """This state in the rows where `condition` [rows] holds, the other's elsewhere."""
        chosen = condition[:, None, None]
        inserted = {n: torch.where(chosen, v, other.inserted[n]) for n, v in self.inserted.items()}
        return State(torch.where(chosen, self.base, other.base), inserted)

    def then(self, other: State) -> State:
        """The positions of this state, then the other's."""
        inserted = {n: torch.cat([v, other.inserted[n]], 1) for n, v in self.inserted.items()}
        return State(torch.cat([self.base, other.base], 1), inserted)

    def _each(self, select: Callable[[Tensor], Tensor]) -> State:
        return State(select(self.base), {name: select(v) for name, v in self.inserted.items()})
