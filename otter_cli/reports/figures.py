"""Figures as cells: the unit is said once, beside the metric's name; the interval stands below."""

from otter_cli.benchmarks.estimates import Estimate
from otter_cli.benchmarks.metrics.catalog import Metric
from otter_cli.reports.page import Cell, Tone
from otter_cli.reports.plots import Point

# How a stored unit is read: its name, and what a value is multiplied by.
_READ_AS = {"": ("", 1.0), "share": ("%", 100.0), "ms": ("ms", 1.0), "bytes": ("MB", 1e-6)}


def name_with_unit(metric: Metric) -> str:
    unit, _ = _READ_AS[metric.unit]
    return f"{metric.label}, {unit}" if unit else metric.label


def point(label: str, figure: Estimate, metric: Metric) -> Point:
    """The figure in the unit that it is read in."""
    _, scale = _READ_AS[metric.unit]
    return Point(label, scale * figure.mean, scale * figure.low, scale * figure.high)


def figure_cell(figure: Estimate, metric: Metric) -> Cell:
    read = point("", figure, metric)
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
