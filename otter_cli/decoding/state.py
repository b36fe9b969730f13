"""What a pass leaves of the positions that it was given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class State:
    """Final states of positions: the base's [rows, n, d], the insertions' [rows, n, D], which may
    be made only when they are looked at."""

    base: Tensor
    inserted: Mapping[str, Tensor]

    def at(self, index: Tensor) -> State:
        """One position a row, `index` [rows]: states [rows, 1, ...]."""
        return self.along(index[:, None])

    def along(self, nodes: Tensor) -> State:
        """Positions `nodes` [rows, m] of each row: states [rows, m, ...]."""
        rows = torch.arange(len(nodes), device=nodes.device)[:, None]
        return self._each(lambda states: states[rows, nodes])

    def last(self, count: int = 1) -> State:
        return self._each(lambda states: states[:, -count:])

    def rows(self, index: Tensor) -> State:
        """The states of the rows `index`, which may repeat."""
        return self._each(lambda states: states[index])

    def each_alone(self) -> State:
        """Every position as a row of its own: states [rows * n, 1, ...]."""
        return self._each(lambda states: states.flatten(0, 1)[:, None])

    def split(self, parts: int) -> State:
        """The positions of each row in equal parts: states [rows * parts, n / parts, ...]."""
        return self._each(lambda states: states.unflatten(1, (parts, -1)).flatten(0, 1))

    def then(self, other: State) -> State:
        """The positions of this state, then the other's."""
        return joined([self, other])

    def _each(self, select: Callable[[Tensor], Tensor]) -> State:
        return State(select(self.base), {name: select(v) for name, v in self.inserted.items()})


def joined(states: Sequence[State]) -> State:
    """The positions of all, one after the other."""
    names = states[0].inserted
    inserted = {name: torch.cat([state.inserted[name] for state in states], 1) for name in names}
    return State(torch.cat([state.base for state in states], 1), inserted)
