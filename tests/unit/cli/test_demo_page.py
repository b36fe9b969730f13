"""What a terminal shows of the report of `otter demo --tiny`: a page, and not every table."""

from otter_cli.cli.demo import _short
from otter_cli.reports.page import IntervalPlot, PlotPoint, Report, ReportSection, ReportTable

TABLE = ReportTable(["", "x"], [["row", "1"]])
PLOT = IntervalPlot("plot", "axis", [PlotPoint("row", 1, 0, 2)])


def test_price_training_and_verdict_are_whole_and_benchmarks_show_their_findings() -> None:
    report = Report(
        "demo",
        "lead",
        [
            ReportSection("Graft", tables=[TABLE]),
            ReportSection("Training", tables=[TABLE], plots=[PLOT]),
            ReportSection("Verify: exact by construction", ["sentence"]),
            ReportSection("Levels", tables=[TABLE]),
            ReportSection("Drafted tokens", ["finding"], [TABLE], [PLOT], notes=["how to read it"]),
            ReportSection("Drafted tokens. Memory", tables=[TABLE], level=3),
        ],
        [("machine", "x")],
    )
    shown = _short(report)
    assert [section.title for section in shown.sections] == [
        "Graft", "Training", "Verify: exact by construction", "Drafted tokens",
    ]  # fmt: skip
    assert [len(section.tables) for section in shown.sections] == [1, 1, 0, 0]
    assert shown.sections[-1].text == ["finding"] and not shown.facts
