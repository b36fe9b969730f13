"""Where dots stand, which colours they have, and which values are written at the axes."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otter_cli.reports.html import (
    SVG_WIDTH,
    AxisScale,
    colour_classes,
    scale_covering,
    svg_plot,
    tick_text,
    ticks,
)
from otter_cli.reports.page import IntervalPlot, LinePlot, PlotPoint, PlotSeries, ScatterPlot

numbers = st.floats(-1e6, 1e6, allow_nan=False).filter(lambda x: x == 0 or abs(x) > 1e-6)


def test_a_scale_is_linear_and_may_run_downwards() -> None:
    scale = AxisScale(0, 10, 200, 0)
    assert (scale(0), scale(5), scale(10)) == (200, 100, 0)


@given(st.lists(numbers, min_size=1, max_size=20))
def test_everything_is_inside_the_drawing(values: list[float]) -> None:
    scale = scale_covering(values, 46, 368)
    assert all(46 <= scale(value) <= 368 for value in values)


@given(st.lists(numbers, min_size=1, max_size=20))
def test_ticks_are_few_round_inside_and_apart(values: list[float]) -> None:
    scale = scale_covering(values, 0, 300)
    found = ticks(scale)
    assert 1 <= len(found) <= 9
    slack = 1e-9 * max(abs(scale.low), abs(scale.high))
    assert all(scale.low - slack <= tick <= scale.high + slack for tick in found)
    assert len(set(found)) == len(found)


def test_steps_are_whole_where_positions_are() -> None:
    assert ticks(scale_covering([1, 2, 3], 0, 300), whole=True) == [1, 2, 3]


def test_air_does_not_reach_below_nothing() -> None:
    assert scale_covering([0.01, 5], 0, 1).low == 0
    assert scale_covering([-1, 5], 0, 1).low < -1


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (1500, "1500"), (2e6, "2e6"), (0.0002, "2e-4"), (-3, "-3")],
)
def test_tick_labels_are_short(value: float, text: str) -> None:
    assert tick_text(value) == text


def test_a_dot_stands_within_its_whisker() -> None:
    plot = IntervalPlot(
        "t", "x", [PlotPoint("plain", 0.3, 0.2, 0.5), PlotPoint("other", 0.9, 0.8, 1)]
    )
    drawn = svg_plot(plot, colour_classes([plot]))
    whiskers = re.findall(r'whisker c\d" x1="([\d.]+)" y1="[\d.]+" x2="([\d.]+)"', drawn)
    dots = re.findall(r'dot c\d" cx="([\d.]+)"', drawn)
    assert len(whiskers) == len(dots) == 2
    for (low, high), dot in zip(whiskers, dots, strict=True):
        assert 0 < float(low) < float(dot) < float(high) < SVG_WIDTH


def test_a_label_has_one_colour_in_all_plots_of_a_section() -> None:
    both = IntervalPlot("t", "x", [PlotPoint("plain", 1, 1, 1), PlotPoint("head", 2, 2, 2)])
    lines = LinePlot("t", "x", "y", [PlotSeries("head", [1], [2])])
    colours = colour_classes([both, lines])
    # Those in a legend first: an interval plot has its labels beside its lines.
    assert colours == {"head": "c0", "plain": "c1"}
    assert 'dot c0"' in svg_plot(lines, colours) and "c1" not in svg_plot(lines, colours)


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
    assert "circle" not in svg_plot(plot, colour_classes([plot]))


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
    drawn = svg_plot(plot, colour_classes([plot]))
    assert drawn.count("<title>bound: 1.05</title>") == 1
    assert [row[-1] for row in plot.data()] == ["bound", "1.05", "-"]
