"""A report's files, report.html and report.md, and the report of a stored result.

`report_again` reads result.json of any benchmark and picks the report that draws it."""

from __future__ import annotations

from pathlib import Path
from pkgutil import resolve_name

from pydantic import ConfigDict

from otter_cli.benchmarks.results import BenchmarkResult, ExampleTexts, ResultFile
from otter_cli.core.atomic import write_text
from otter_cli.reports.benchmark import benchmark_report
from otter_cli.reports.html import html_page
from otter_cli.reports.markdown import markdown_page
from otter_cli.reports.page import Report

HTML_FILE, MARKDOWN_FILE = "report.html", "report.md"


def write_report(report: Report, folder: Path) -> Path:
    """Writes both files into `folder` and returns the path of the HTML."""
    write_text(folder / MARKDOWN_FILE, markdown_page(report))
    write_text(folder / HTML_FILE, html_page(report))
    return folder / HTML_FILE


class _ResultName(ResultFile):
    model_config = ConfigDict(extra="ignore")

    benchmark: str


# The result and the report of a benchmark, as module:name. Others have the common ones.
_KINDS = {
    "matrix": ("benchmarks.matrix.run_matrix:MatrixResult", "comparisons:matrix_report"),
    "overhead": ("benchmarks.overhead.result:OverheadResult", "overhead:overhead_report"),
    "lm-eval": ("benchmarks.lm_eval.run_lm_eval:LmEvalResult", "comparisons:lm_eval_report"),
    "pairs": ("benchmarks.tasks.pairs:PairsResult", "comparisons:pairs_report"),
}
_COMMON_KIND = ("benchmarks.results:BenchmarkResult", "benchmark:benchmark_report")


def report_again(folder: Path) -> tuple[ResultFile, Report]:
    """Reads the result and draws it. Raises OtterError where there is none, or it is damaged."""
    result_name, report_name = _KINDS.get(_ResultName.read(folder).benchmark, _COMMON_KIND)
    result = resolve_name(f"otter_cli.{result_name}").read(folder)
    if isinstance(result, BenchmarkResult):
        return result, benchmark_report(result, ExampleTexts.read(folder))
    return result, resolve_name(f"otter_cli.reports.{report_name}")(result)
