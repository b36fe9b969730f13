"""The terminal at 100 columns, and Markdown."""

import io

import pytest
from rich.console import Console

from otter_cli.reports.markdown import markdown_page
from otter_cli.reports.page import Cell, Report, ReportSection, ReportTable
from otter_cli.reports.report_files import write_report
from otter_cli.reports.terminal import terminal_page


def shown(report: Report) -> str:
    out = io.StringIO()
    Console(file=out, width=100, color_system=None).print(terminal_page(report))
    return out.getvalue()


def test_the_terminal_shows_every_cell_and_paragraph(report: Report) -> None:
    text = shown(report)
    for part in ("Lead.", "A paragraph.", "0.300", "0.250 to 0.360", "Words only", "gold reward"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 100


def test_wide_tables_are_split_with_their_names_repeated() -> None:
    columns = ["metric", *(f"method {i}" for i in range(8))]
    row = ["gold reward", *(Cell(f"0.{i}00", f"0.{i}11 to 0.{i}99") for i in range(8))]
    text = shown(Report("t", "l", [ReportSection("s", tables=[ReportTable(columns, [row])])]))
    assert text.count("gold reward") == 2
    for i in range(8):
        assert f"method {i}" in text and f"0.{i}11 to 0.{i}99" in text


def test_a_long_name_keeps_its_end() -> None:
    columns = ["method", *(f"expected maximum toxicity {i}" for i in range(5))]
    figures = [Cell("0.600", "0.611 to 0.699")] * 5
    rows = [[f"experts-of-a-long-name@{i}", *figures] for i in (15, 25)]
    text = shown(Report("t", "l", [ReportSection("s", tables=[ReportTable(columns, rows)])]))
    first = "".join(line[:18].strip() for line in text.splitlines())
    assert "experts-of-a-long-name@15" in first and "experts-of-a-long-name@25" in first


def test_square_brackets_are_no_markup() -> None:
    assert "[bold]x[/bold]" in shown(Report("t", "l", [ReportSection("s", ["[bold]x[/bold]"])]))


def test_markdown_tables_are_whole(report: Report) -> None:
    lines = markdown_page(report).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 4
    assert all(line.replace("\\|", "").count("|") == 4 for line in table)
    assert table[2] == "| gold reward | 0.300 0.250 to 0.360 | 0.500 0.440 to 0.580 |"


def test_a_row_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="a row of 1 cells under 2 columns"):
        ReportTable(["a", "b"], [["only one"]])


def test_both_files_are_written(report: Report, tmp_path) -> None:
    path = write_report(report, tmp_path)
    assert path.read_text().startswith("<!doctype html>")
    assert (tmp_path / "report.md").read_text().startswith("# Title")
