"""The final hidden states of a forward pass, and a buffer of passes whose signals are not read yet.

Signals of several passes are read together: one read over many positions costs less than many
reads over one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class HiddenStates:
    """Final states of positions: the base's [rows, n, d], the insertions' [rows, n, D], which may
    be made only when they are looked at."""

    base: Tensor
    inserted: Mapping[str, Tensor]

    def at(self, index: Tensor) -> HiddenStates:
        """One position a row, `index` [rows]: states [rows, 1, ...]."""
        return self.along(index[:, None])

    def along(self, nodes: Tensor) -> HiddenStates:
        """Positions `nodes` [rows, m] of each row: states [rows, m, ...]."""
        rows = torch.arange(len(nodes), device=nodes.device)[:, None]
        return self._each(lambda states: states[rows, nodes])

    def last(self, count: int = 1) -> HiddenStates:
        return self._each(lambda states: states[:, -count:])

    def rows(self, index: Tensor) -> HiddenStates:
        """The states of the rows `index`, which may repeat."""
        return self._each(lambda states: states[index])

    def each_alone(self) -> HiddenStates:
        """Every position as a row of its own: states [rows * n, 1, ...]."""
        return self._each(lambda states: states.flatten(0, 1)[:, None])

    def split(self, parts: int) -> HiddenStates:
        """The positions of each row in equal parts: states [rows * parts, n / parts, ...]."""
        return self._each(lambda states: states.unflatten(1, (parts, -1)).flatten(0, 1))

    def then(self, other: HiddenStates) -> HiddenStates:
        """The positions of this state, then the other's."""
        return concatenate([self, other])

    def _each(self, select: Callable[[Tensor], Tensor]) -> HiddenStates:
        return HiddenStates(
            select(self.base), {name: select(v) for name, v in self.inserted.items()}
        )


def concatenate(states: Sequence[HiddenStates]) -> HiddenStates:
    """The positions of all, one after the other."""
    names = states[0].inserted
    inserted = {name: torch.cat([state.inserted[name] for state in states], 1) for name in names}
    return HiddenStates(torch.cat([state.base for state in states], 1), inserted)


class SignalBuffer:
    """States of passes [rows, n, ...], and how many positions of each every row took, its first."""

    def __init__(self) -> None:
        self._passes: list[tuple[HiddenStates, list[int]]] = []

    def __len__(self) -> int:
        return len(self._passes)

    def add(self, states: HiddenStates, taken: list[int]) -> None:
        self._passes.append((states, list(taken)))

    def take(self) -> tuple[HiddenStates, list[list[int]]]:
        """The states of all passes side by side and, by row, the places of those it took; after
        which there are none."""
        passes, self._passes = self._passes, []
        places: list[list[int]] = [[] for _ in passes[0][1]]
        start = 0
        for states, taken in passes:
            for row, count in enumerate(taken):
                places[row] += range(start, start + count)
            start += states.base.shape[1]
        return concatenate([states for states, _ in passes]), places
