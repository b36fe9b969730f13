"""Where dots stand, which colours they have, and which values are written at the axes."""

import math
import re
from dataclasses import dataclass
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otter_cli.reports.page import (
    IntervalPlot,
    LinePlot,
    Plot,
    PlotPoint,
    PlotSeries,
    ScatterPlot,
)
from otter_cli.reports.plots import WIDTH, colour_classes, svg_plot, tick_text

numbers = st.floats(-1e6, 1e6, allow_nan=False).filter(lambda x: x == 0 or abs(x) > 1e-6)
some_numbers = st.lists(numbers, min_size=1, max_size=20)
a_few = settings(max_examples=25, deadline=None)

Position = tuple[float, float]


@dataclass
class Drawn:
    """What an SVG shows, by its coordinates: y grows downwards."""

    height: float
    dots: list[Position]
    lines: list[list[Position]]  # of the data: no grid
    x_ticks: list[tuple[str, float]]
    y_ticks: list[tuple[str, float]]


def drawn(plot: Plot) -> Drawn:
    svg = svg_plot(plot, colour_classes([plot]))
    root = ElementTree.fromstring(svg.replace("xlink:href", "href"))
    in_markers = {id(path) for defs in root.iter("defs") for path in defs.iter()}
    lines = [
        [(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", path.attrib["d"])]
        for path in root.iter("path")
        if id(path) not in in_markers and "stroke: var(--c" in path.attrib["style"]
    ]
    ticks = [
        (text.text or "", float(text.attrib["x"]), float(text.attrib["y"]), text.attrib["style"])
        for text in root.iter("text")
        if "font-size: 11px" in text.attrib["style"]
    ]
    return Drawn(
        height=float(root.attrib["viewBox"].split()[3]),
        dots=[(float(use.attrib["x"]), float(use.attrib["y"])) for use in root.iter("use")],
        lines=lines,
        x_ticks=[(text, x) for text, x, _, style in ticks if "anchor: middle" in style],
        y_ticks=[(text, y) for text, _, y, style in ticks if "anchor: end" in style],
    )


def series_of(values: list[float]) -> LinePlot:
    return LinePlot("t", "x", "y", [PlotSeries("a", values[:12], values[:12])])


def test_positions_are_linear_and_larger_values_stand_higher() -> None:
    (x0, y0), (x1, y1), (x2, y2) = drawn(series_of([0, 5, 10])).dots
    assert x0 < x1 < x2 and y0 > y1 > y2
    assert x1 - x0 == pytest.approx(x2 - x1) and y0 - y1 == pytest.approx(y1 - y2)


@a_few
@given(some_numbers)
def test_everything_is_inside_the_drawing(values: list[float]) -> None:
    points = [PlotPoint("a", value, value, value) for value in values]
    for plot in (
        series_of(values),
        IntervalPlot("t", "x", points, reference=values[0]),
        ScatterPlot("t", "x", "y", [(p, p) for p in points]),
    ):
        found = drawn(plot)
        positions = found.dots + [position for line in found.lines for position in line]
        assert positions
        assert all(0 < x < WIDTH and 0 < y < found.height for x, y in positions)


@a_few
@given(some_numbers)
def test_ticks_are_few_round_inside_and_apart(values: list[float]) -> None:
    found = drawn(series_of(values))
    for ticks, most in ((found.x_ticks, WIDTH), (found.y_ticks, found.height)):
        assert 1 <= len(ticks) <= 9
        assert all(0 < position < most for _, position in ticks)
        assert len({position for _, position in ticks}) == len(ticks)


def test_steps_are_whole_where_positions_are() -> None:
    plot = LinePlot("t", "x", "y", [PlotSeries("a", [1, 2, 3], [1, 2, 3])], whole_steps=True)
    assert [text for text, _ in drawn(plot).x_ticks] == ["1", "2", "3"]


def test_air_does_not_reach_below_nothing() -> None:
    def left_of(values: list[float]) -> float:
        """The value at the left edge, by the positions of the outer dots."""
        (x0, _), (x1, _) = drawn(series_of(values)).dots
        return values[0] - (x0 - 46) * (values[1] - values[0]) / (x1 - x0)

    assert left_of([0.01, 5]) == pytest.approx(0, abs=1e-6)
    assert left_of([-1, 5]) < -1


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (1500, "1500"), (2e6, "2e6"), (0.0002, "2e-4"), (-3, "-3")],
)
def test_tick_labels_are_short(value: float, text: str) -> None:
    assert tick_text(value) == text


def test_a_dot_stands_within_its_whisker() -> None:
    points = [PlotPoint("plain", 0.3, 0.2, 0.5), PlotPoint("other", 0.9, 0.8, 1)]
    found = drawn(IntervalPlot("t", "x", points))
    assert len(found.lines) == len(found.dots) == 2
    for ((low, y), (high, _)), dot in zip(found.lines, found.dots, strict=True):
        assert 0 < low < dot[0] < high < WIDTH and dot[1] == y


def test_a_label_has_one_colour_in_all_plots_of_a_section() -> None:
    both = IntervalPlot("t", "x", [PlotPoint("plain", 1, 1, 1), PlotPoint("head", 2, 2, 2)])
    lines = LinePlot("t", "x", "y", [PlotSeries("head", [1], [2])])
    colours = colour_classes([both, lines])
    # Those in a legend first: an interval plot has its labels beside its lines.
    assert colours == {"head": "c0", "plain": "c1"}
    assert "var(--c0)" in svg_plot(lines, colours)
    assert "var(--c1)" not in svg_plot(lines, colours)


def test_colours_are_those_of_the_style_sheet_and_no_others() -> None:
    labels = [f"label {i}" for i in range(13)]
    plot = IntervalPlot("t", "x", [PlotPoint(label, 1, 1, 1) for label in labels], 0.5)
    svg = svg_plot(plot, colour_classes([plot]))
    assert not re.search(r"(?:fill|stroke): #", svg)
    assert all(f"var(--c{i})" in svg for i in range(12))


def test_equal_values_are_drawn_without_a_division_by_nothing() -> None:
    same = PlotPoint("plain", 0.0, 0.0, 0.0)
    for plot in (
        IntervalPlot("t", "x", [same]),
        ScatterPlot("t", "x", "y", [(same, same)]),
        LinePlot("t", "x", "y", [PlotSeries("plain", [1.0], [0.0])]),
    ):
        assert "nan" not in svg_plot(plot, colour_classes([plot]))


def test_long_curves_have_no_dots() -> None:
    long = PlotSeries("loss", list(range(200)), [math.exp(-i / 50) for i in range(200)])
    plot = LinePlot("Loss", "step", "loss", [long])
    assert drawn(plot).dots == []
    assert len(drawn(plot).lines) == 1


def test_the_data_of_a_plot_are_its_numbers() -> None:
    series = [
        PlotSeries("a", [1, 2], [0.5, 0.25], [0.4, 0.2], [0.6, 0.3]),
        PlotSeries("b", [1], [3]),
    ]
    assert LinePlot("t", "step", "loss", series).data() == [
        ["", "step", "loss", "low", "high"],
        ["a", "1", "0.5", "0.4", "0.6"],
        ["a", "2", "0.25", "0.2", "0.3"],
        ["b", "1", "3", "", ""],
    ]


def test_a_bound_is_drawn_and_told_where_it_is_known() -> None:
    points = [PlotPoint("decode", 1.2, 1.19, 1.21, 1.05), PlotPoint("plain", 1.0, 1.0, 1.0)]
    plot = IntervalPlot("t", "x", points, 1.0)
    assert svg_plot(plot, colour_classes([plot])).count("<title>bound: 1.05</title>") == 1
    assert [row[-1] for row in plot.data()] == ["bound", "1.05", "-"]


def test_a_user_setting_of_matplotlib_changes_no_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    plot = series_of([1, 2, 3])
    before = svg_plot(plot, colour_classes([plot]))
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 30)
    monkeypatch.setitem(matplotlib.rcParams, "axes.facecolor", "red")
    assert svg_plot(plot, colour_classes([plot])) == before
