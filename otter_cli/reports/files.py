"""A report's files: report.html and report.md."""

from pathlib import Path

from otter_cli.core.atomic import write_text
from otter_cli.reports.html import html_page
from otter_cli.reports.markdown import markdown_page
from otter_cli.reports.page import Report

HTML, MARKDOWN = "report.html", "report.md"


def write_report(report: Report, folder: Path) -> Path:
    """Writes both into `folder`; returns the HTML's path."""
    write_text(folder / MARKDOWN, markdown_page(report))
    write_text(folder / HTML, html_page(report))
    return folder / HTML
