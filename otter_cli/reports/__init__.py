"""Reports: sections of text, tables and plots, drawn for the terminal, as HTML and as Markdown.

`page.Report` and `page.Section` are what a report is made of; anything that can be said in them
(a benchmark's result, a proof, a training run) is drawn by the same three renderers.
"""

from otter_cli.reports.html import html_page
from otter_cli.reports.markdown import markdown_page
from otter_cli.reports.page import Cell, Report, Section, Table
from otter_cli.reports.plots import IntervalPlot, LinePlot, Point, ScatterPlot, Series
from otter_cli.reports.terminal import terminal_page

__all__ = [
    "Cell",
    "IntervalPlot",
    "LinePlot",
    "Point",
    "Report",
    "ScatterPlot",
    "Section",
    "Series",
    "Table",
    "html_page",
    "markdown_page",
    "terminal_page",
]
