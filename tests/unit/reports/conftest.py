"""A report with one of everything in it, and text that must be escaped everywhere."""

import pytest

from otter_cli.reports.page import (
    Cell,
    IntervalPlot,
    LinePlot,
    PlotPoint,
    PlotSeries,
    Report,
    ReportSection,
    ReportTable,
    ScatterPlot,
)

NASTY = 'a <b> & "c" | d'


@pytest.fixture
def report() -> Report:
    points = [PlotPoint("plain", 0.3, 0.25, 0.36), PlotPoint(NASTY, 0.5, 0.44, 0.58)]
    cells = [Cell("0.300", "0.250 to 0.360"), Cell("0.500", "0.440 to 0.580", "good")]
    series = [PlotSeries("plain", [1, 2, 3], [0.6, 0.4, 0.3], [0.5, 0.3, 0.2], [0.7, 0.5, 0.4])]
    return Report(
        "Title " + NASTY,
        "Lead.",
        [
            ReportSection(
                "Figures",
                ["A paragraph.", NASTY],
                [
                    ReportTable(
                        ["metric", "plain", NASTY], [["gold reward", *cells], ["steps", "1", "2"]]
                    )
                ],
                [
                    IntervalPlot("Gold", "gold reward", points, reference=0.3),
                    ScatterPlot("Cost", "ms", "gold", [(p, p) for p in points]),
                    LinePlot("Accepted", "position", "%", series, whole_steps=True),
                ],
            ),
            ReportSection("Words only", ["Nothing to draw."]),
        ],
        [("prompts", NASTY)],
        {"text": "</script><script>alert(1)</script>"},
    )
