"""What a report is made of: sections, tables, cells, plots as data, and figures as cells.

Plots carry their numbers, which stand as a table below the drawing. Renderers add no word and no
number of their own."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias

from otter_cli.benchmarks.metrics.estimates import Estimate, Metric

PlotTable: TypeAlias = list[list[str]]


@dataclass(frozen=True)
class PlotPoint:
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
    points: Sequence[PlotPoint]
    reference: float | None = None
    has_legend: ClassVar = False

    def labels(self) -> list[str]:
        return [point.label for point in self.points]

    def data(self) -> PlotTable:
        head = ["", self.axis, "low", "high"]
        rows = [[p.label, *map(_plot_number, (p.mean, p.low, p.high))] for p in self.points]
        if any(p.bound is not None for p in self.points):
            head.append("bound")
            for row, p in zip(rows, self.points, strict=True):
                row.append("-" if p.bound is None else _plot_number(p.bound))
        return [head, *rows]


@dataclass(frozen=True)
class ScatterPlot:
    """Two figures of each label against each other, both with their intervals."""

    title: str
    x_axis: str
    y_axis: str
    points: Sequence[tuple[PlotPoint, PlotPoint]]  # x and y of one label
    has_legend: ClassVar = True

    def labels(self) -> list[str]:
        return [x.label for x, _ in self.points]

    def data(self) -> PlotTable:
        head = ["", self.x_axis, "low", "high", self.y_axis, "low", "high"]
        return [
            head,
            *([x.label, *map(_plot_number, (x.mean, x.low, x.high, y.mean, y.low, y.high))]
              for x, y in self.points),
        ]  # fmt: skip


@dataclass(frozen=True)
class PlotSeries:
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
    series: Sequence[PlotSeries]
    whole_steps: bool = False  # ticks on whole numbers only: positions, steps
    has_legend: ClassVar = True

    def labels(self) -> list[str]:
        return [series.label for series in self.series]

    def data(self) -> PlotTable:
        rows = [["", self.x_axis, self.y_axis, "low", "high"]]
        for s in self.series:
            for i, (x, y) in enumerate(zip(s.x, s.y, strict=True)):
                bounds = (_plot_number(s.low[i]), _plot_number(s.high[i])) if s.low else ("", "")
                rows.append([s.label, _plot_number(x), _plot_number(y), *bounds])
        return rows


Plot: TypeAlias = IntervalPlot | ScatterPlot | LinePlot


def _plot_number(value: float) -> str:
    return f"{value:.5g}"


FACTS_TITLE = "What made these numbers"

Tone = Literal["plain", "good", "bad"]


@dataclass(frozen=True)
class Cell:
    """A table's cell: `detail` (an interval, say) stands smaller, below or after the text."""

    text: str
    detail: str = ""
    tone: Tone = "plain"


@dataclass(frozen=True)
class ReportTable:
    """The first column names the rows; `numeric` says whether the others are aligned right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    numeric: bool = True

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"a row of {len(row)} cells under {len(self.columns)} columns")


@dataclass(frozen=True)
class ColouredText:
    """A text whose tokens show a signal by their colour, on the scale from `low` to `high`.

    `values` has a number for each of `tokens`, or None. `label` says which method wrote the text.
    """

    label: str
    prompt: str
    tokens: Sequence[str]
    values: Sequence[float | None]
    low: float
    high: float
    detail: str = ""


@dataclass(frozen=True)
class ReportSection:
    """A heading with paragraphs, then plots, then coloured texts, then tables."""

    title: str
    text: Sequence[str] = ()
    tables: Sequence[ReportTable] = ()
    plots: Sequence[Plot] = ()
    texts: Sequence[ColouredText] = ()


@dataclass(frozen=True)
class Report:
    """`facts` are short lines at the end, under a heading of their own; `data` is embedded in the
    HTML, as JSON."""

    title: str
    lead: str
    sections: Sequence[ReportSection]
    facts: Sequence[tuple[str, str]] = ()
    data: Any = field(default=None, repr=False)


def as_cell(cell: Cell | str) -> Cell:
    return cell if isinstance(cell, Cell) else Cell(cell)


# How a stored unit is read: its name, and what a value is multiplied by.
_DISPLAY_UNITS = {"": ("", 1.0), "share": ("%", 100.0), "ms": ("ms", 1.0), "bytes": ("MB", 1e-6)}


def name_with_unit(metric: Metric) -> str:
    unit, _ = _DISPLAY_UNITS[metric.unit]
    return f"{metric.label}, {unit}" if unit else metric.label


def plot_point(label: str, figure: Estimate, metric: Metric) -> PlotPoint:
    """The figure in the unit that it is read in."""
    _, scale = _DISPLAY_UNITS[metric.unit]
    return PlotPoint(label, scale * figure.mean, scale * figure.low, scale * figure.high)


def figure_cell(figure: Estimate, metric: Metric) -> Cell:
    read = plot_point("", figure, metric)
    return Cell(number_text(read.mean), f"{number_text(read.low)} to {number_text(read.high)}")


def difference_cell(figure: Estimate, metric: Metric) -> Cell:
    """Signed, and coloured only where the interval leaves nought out and one way is better."""
    cell = figure_cell(figure, metric)
    sign = "+" if figure.mean > 0 else ""
    return Cell(sign + cell.text, cell.detail, _tone(figure, metric))


def number_text(value: float) -> str:
    """Three digits: 0.0312, 4.10, 25.5, 12,346; nought is 0."""
    if not value:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def _tone(figure: Estimate, metric: Metric) -> Tone:
    if metric.better is None or figure.low <= 0 <= figure.high:
        return "plain"
    return "good" if (figure.mean > 0) == (metric.better == "higher") else "bad"
