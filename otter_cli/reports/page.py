"""What a report consists of: sections, tables, cells, coloured texts, and plots as data.

A report is drawn in three forms: for the terminal (terminal.py), as Markdown (markdown.py) and as
HTML (html.py). They add no number of their own. Helpers turn estimates into cells and points."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self, TypeAlias

from otter_cli.benchmarks.metrics.estimates import Estimate, Metric

FACTS_TITLE = "What made these numbers"

Tone = Literal["plain", "good", "bad"]


@dataclass(frozen=True)
class Cell:
    """A table's cell. `detail`, such as an interval, is written smaller, below or after `text`."""

    text: str
    detail: str = ""
    tone: Tone = "plain"


def as_cell(cell: Cell | str) -> Cell:
    return cell if isinstance(cell, Cell) else Cell(cell)


@dataclass(frozen=True)
class ReportTable:
    """The first column names the rows. `numeric`: the other columns are aligned right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    numeric: bool = True

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"a row of {len(row)} cells under {len(self.columns)} columns")


@dataclass(frozen=True)
class PlotPoint:
    """A value with its interval. `bound`: the least value possible, where it is known."""

    label: str
    mean: float
    low: float
    high: float
    bound: float | None = None


@dataclass(frozen=True)
class IntervalPlot:
    """A row for each label: a dot and its interval. `reference` is a line through all rows."""

    title: str
    axis: str
    points: Sequence[PlotPoint]
    reference: float | None = None
    has_legend: ClassVar = False

    def labels(self) -> list[str]:
        return [point.label for point in self.points]

    def data(self) -> list[list[str]]:
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

    def data(self) -> list[list[str]]:
        rows = [["", self.x_axis, "low", "high", self.y_axis, "low", "high"]]
        for x, y in self.points:
            values = (x.mean, x.low, x.high, y.mean, y.low, y.high)
            rows.append([x.label, *map(_plot_number, values)])
        return rows


@dataclass(frozen=True)
class PlotSeries:
    """One line of a LinePlot: a point for each x; `low` and `high` where there are intervals."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()

    @classmethod
    def of(cls, label: str, figures: Iterable[tuple[float, Estimate | PlotPoint]]) -> Self:
        """From pairs of x and a figure with its interval, in any order."""
        ordered = sorted(figures, key=lambda pair: pair[0])
        return cls(
            label,
            [x for x, _ in ordered],
            [figure.mean for _, figure in ordered],
            [figure.low for _, figure in ordered],
            [figure.high for _, figure in ordered],
        )


@dataclass(frozen=True)
class LinePlot:
    """Series over a shared x axis."""

    title: str
    x_axis: str
    y_axis: str
    series: Sequence[PlotSeries]
    whole_steps: bool = False  # x is a position or a step: only whole numbers at the axis
    has_legend: ClassVar = True

    def labels(self) -> list[str]:
        return [series.label for series in self.series]

    def data(self) -> list[list[str]]:
        rows = [["", self.x_axis, self.y_axis, "low", "high"]]
        for s in self.series:
            for i, (x, y) in enumerate(zip(s.x, s.y, strict=True)):
                bounds = (_plot_number(s.low[i]), _plot_number(s.high[i])) if s.low else ("", "")
                rows.append([s.label, _plot_number(x), _plot_number(y), *bounds])
        return rows


Plot: TypeAlias = IntervalPlot | ScatterPlot | LinePlot


def _plot_number(value: float) -> str:
    return f"{value:.5g}"


@dataclass(frozen=True)
class ColouredText:
    """A text whose tokens show a signal, on the scale from `low` to `high`: by their colour, by the
    height of a bar below them, and by the number that a page shows on hover and on focus.

    `values` has a number for each of `tokens`, or None. `label` says which method wrote the text.
    """

    label: str
    prompt: str
    tokens: Sequence[str]
    values: Sequence[float | None]
    low: float
    high: float
    detail: str = ""


# From low to high.
SIGNAL_COLOURS = ("#d73027", "#f46d43", "#fdae61", "#d9d9d9", "#a6d96a", "#66bd63", "#1a9850")
NEUTRAL = SIGNAL_COLOURS[len(SIGNAL_COLOURS) // 2]


def scale_of(values: Sequence[float | None]) -> tuple[float, float]:
    """The lowest and the highest finite value: a reward has no fixed range. (0, 0) without any."""
    finite = [v for v in values if v is not None and math.isfinite(v)]
    return (min(finite), max(finite)) if finite else (0.0, 0.0)


def colour_of(value: float | None, low: float, high: float) -> str:
    """The colour of `value` on a scale from `low` to `high`; neutral where there is no value."""
    return SIGNAL_COLOURS[level_of(value, low, high, len(SIGNAL_COLOURS))]


def level_of(value: float | None, low: float, high: float, levels: int) -> int:
    """Which of `levels` equal steps of the scale; the middle without a value or without a range."""
    if value is None or not math.isfinite(value) or high <= low:
        return levels // 2
    share = min(max((value - low) / (high - low), 0.0), 1.0)
    return min(int(share * levels), levels - 1)


@dataclass(frozen=True)
class ReportSection:
    """A heading with paragraphs, then plots, then coloured texts, then tables, then notes on how to
    read them. A section of level 3 belongs to the one of level 2 before it."""

    title: str
    text: Sequence[str] = ()
    tables: Sequence[ReportTable] = ()
    plots: Sequence[Plot] = ()
    texts: Sequence[ColouredText] = ()
    notes: Sequence[str] = ()
    level: Literal[2, 3] = 2


@dataclass(frozen=True)
class Report:
    """`facts` are name and value, listed at the end. `data` is embedded in the HTML, as JSON."""

    title: str
    lead: str
    sections: Sequence[ReportSection]
    facts: Sequence[tuple[str, str]] = ()
    data: Any = field(default=None, repr=False)


# How a stored unit is displayed: its name, and the factor of a value.
_DISPLAY_UNITS = {"": ("", 1.0), "share": ("%", 100.0), "ms": ("ms", 1.0), "bytes": ("MB", 1e-6)}


def name_with_unit(metric: Metric) -> str:
    unit, _ = _DISPLAY_UNITS[metric.unit]
    return f"{metric.label}, {unit}" if unit else metric.label


def plot_point(label: str, figure: Estimate, metric: Metric) -> PlotPoint:
    """The figure in its display unit."""
    _, scale = _DISPLAY_UNITS[metric.unit]
    return PlotPoint(label, scale * figure.mean, scale * figure.low, scale * figure.high)


def figure_cell(figure: Estimate, metric: Metric) -> Cell:
    point = plot_point("", figure, metric)
    return Cell(number_text(point.mean), interval_text(point.low, point.high))


def difference_cell(figure: Estimate, metric: Metric) -> Cell:
    """Signed. It is coloured if the interval excludes zero and one direction is better."""
    cell = figure_cell(figure, metric)
    sign = "+" if figure.mean > 0 else ""
    return Cell(sign + cell.text, cell.detail, _tone(figure, metric))


def _tone(figure: Estimate, metric: Metric) -> Tone:
    if metric.better is None or figure.low <= 0 <= figure.high:
        return "plain"
    return "good" if (figure.mean > 0) == (metric.better == "higher") else "bad"


def interval_text(low: float, high: float) -> str:
    return f"{number_text(low)} to {number_text(high)}"


def number_text(value: float) -> str:
    """Three digits: 0.0312, 4.10, 25.5, 12,346. Zero is 0."""
    if not value:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def named_values(values: dict[str, Any], names: Iterable[str] | None = None) -> str:
    """`name value, name value`: all of `values`, or those of `names` that are there."""
    chosen = values if names is None else [name for name in names if name in values]
    return ", ".join(f"{name} {values[name]}" for name in chosen)
