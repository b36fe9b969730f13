"""Plots as data: what is drawn and what it is called, with the numbers behind it as a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

Rows: TypeAlias = list[list[str]]


@dataclass(frozen=True)
class Point:
    """A value with its interval, and the least that it could be where that is known."""

    label: str
    mean: float
    low: float
    high: float
    bound: float | None = None


@dataclass(frozen=True)
class IntervalPlot:
    """One line a label: a dot and its interval; `reference` is drawn through all of them."""

    title: str
    axis: str
    points: Sequence[Point]
    reference: float | None = None

    def labels(self) -> list[str]:
        return [point.label for point in self.points]

    def data(self) -> Rows:
        head = ["", self.axis, "low", "high"]
        rows = [[p.label, *map(_number, (p.mean, p.low, p.high))] for p in self.points]
        if any(p.bound is not None for p in self.points):
            head.append("bound")
            for row, p in zip(rows, self.points, strict=True):
                row.append("-" if p.bound is None else _number(p.bound))
        return [head, *rows]


@dataclass(frozen=True)
class ScatterPlot:
    """Two figures of each label against each other, both with their intervals."""

    title: str
    x_axis: str
    y_axis: str
    points: Sequence[tuple[Point, Point]]  # x and y of one label

    def labels(self) -> list[str]:
        return [x.label for x, _ in self.points]

    def data(self) -> Rows:
        head = ["", self.x_axis, "low", "high", self.y_axis, "low", "high"]
        return [
            head,
            *([x.label, *map(_number, (x.mean, x.low, x.high, y.mean, y.low, y.high))]
              for x, y in self.points),
        ]  # fmt: skip


@dataclass(frozen=True)
class Series:
    """One line of a LinePlot: a point for each x; `low` and `high` where there are intervals."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class LinePlot:
    """Series over a shared x axis."""

    title: str
    x_axis: str
    y_axis: str
    series: Sequence[Series]
    whole_steps: bool = False  # ticks on whole numbers only: positions, steps

    def labels(self) -> list[str]:
        return [series.label for series in self.series]

    def data(self) -> Rows:
        rows = [["", self.x_axis, self.y_axis, "low", "high"]]
        for s in self.series:
            for i, (x, y) in enumerate(zip(s.x, s.y, strict=True)):
                bounds = (_number(s.low[i]), _number(s.high[i])) if s.low else ("", "")
                rows.append([s.label, _number(x), _number(y), *bounds])
        return rows


Plot: TypeAlias = IntervalPlot | ScatterPlot | LinePlot


def _number(value: float) -> str:
    return f"{value:.5g}"
