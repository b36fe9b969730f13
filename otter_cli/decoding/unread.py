"""Passes whose signals nobody has read yet."""

from __future__ import annotations

from otter_cli.decoding.state import State, joined


class Unread:
    """States of passes [rows, n, ...], and how many positions of each every row took, its first."""

    def __init__(self) -> None:
        self._passes: list[tuple[State, list[int]]] = []

    def __len__(self) -> int:
        return len(self._passes)

    def add(self, states: State, taken: list[int]) -> None:
        self._passes.append((states, list(taken)))

    def take(self) -> tuple[State, list[list[int]]]:
        """The states of all passes side by side and, by row, the places of those it took; after
        which there are none."""
        passes, self._passes = self._passes, []
        places: list[list[int]] = [[] for _ in passes[0][1]]
        start = 0
        for states, taken in passes:
            for row, count in enumerate(taken):
                places[row] += range(start, start + count)
            start += states.base.shape[1]
        return joined([states for states, _ in passes]), places
