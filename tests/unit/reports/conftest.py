"""A report with one of everything in it, and text that must be escaped everywhere."""

import pytest

from otter_cli.reports import (
    Cell,
    IntervalPlot,
    LinePlot,
    Point,
    Report,
    ScatterPlot,
    Section,
    Series,
    Table,
)

NASTY = 'a <b> & "c" | d'


@pytest.fixture
def report() -> Report:
    points = [Point("plain", 0.3, 0.25, 0.36), Point(NASTY, 0.5, 0.44, 0.58)]
    cells = [Cell("0.300", "0.250 to 0.360"), Cell("0.500", "0.440 to 0.580", "good")]
    series = [Series("plain", [1, 2, 3], [0.6, 0.4, 0.3], [0.5, 0.3, 0.2], [0.7, 0.5, 0.4])]
    return Report(
        "Title " + NASTY,
        "Lead.",
        [
            Section(
                "Figures",
                ["A paragraph.", NASTY],
                [Table(["metric", "plain", NASTY], [["gold reward", *cells], ["steps", "1", "2"]])],
                [
                    IntervalPlot("Gold", "gold reward", points, reference=0.3),
                    ScatterPlot("Cost", "ms", "gold", [(p, p) for p in points]),
                    LinePlot("Accepted", "position", "%", series, whole_steps=True),
                ],
            ),
            Section("Words only", ["Nothing to draw."]),
        ],
        [("prompts", NASTY)],
        {"text": "</script><script>alert(1)</script>"},
    )
