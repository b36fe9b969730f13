"""Reports: sections of text, tables and plots, drawn for the terminal, as HTML and as Markdown.

`page.Report` and `page.Section` are what a report is made of. Whatever can be said in them (a
benchmark's result, a proof, a training run) is drawn by the same three renderers."""

from otter_cli.reports.html import html_page
from otter_cli.reports.markdown import markdown_page
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
from otter_cli.reports.terminal import terminal_page

__all__ = [
    "Cell",
    "IntervalPlot",
    "LinePlot",
    "PlotPoint",
    "PlotSeries",
    "Report",
    "ReportSection",
    "ReportTable",
    "ScatterPlot",
    "html_page",
    "markdown_page",
    "terminal_page",
]
