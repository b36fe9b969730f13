"""A report's files, report.html and report.md, and the report of a stored result.

`report_again` reads result.json of any benchmark and picks the report that draws it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from otter_cli.benchmarks.results import ResultFile
from otter_cli.core.atomic import write_text
from otter_cli.reports.html import html_page
from otter_cli.reports.markdown import markdown_page
from otter_cli.reports.page import Report

HTML_FILE, MARKDOWN_FILE = "report.html", "report.md"


def write_report(report: Report, folder: Path) -> Path:
    """Writes both into `folder`; returns the HTML's path."""
    write_text(folder / MARKDOWN_FILE, markdown_page(report))
    write_text(folder / HTML_FILE, html_page(report))
    return folder / HTML_FILE


class _ResultName(ResultFile):
    model_config = ConfigDict(extra="ignore")

    benchmark: str


def report_again(folder: Path) -> tuple[ResultFile, Report]:
    """Reads the result and draws it. Raises OtterError where there is none, or it is damaged."""
    kind, draw = _result_and_report(_ResultName.read(folder).benchmark)
    result = kind.read(folder)
    return result, draw(result)


def _result_and_report(benchmark: str) -> tuple[type[ResultFile], Callable[[Any], Report]]:
    """What its result is, and what draws it; each imported where it is wanted."""
    match benchmark:
        case "matrix":
            from otter_cli.benchmarks.matrix.run_matrix import MatrixResult
            from otter_cli.reports.comparisons import matrix_report

            return MatrixResult, matrix_report
        case "overhead":
            from otter_cli.benchmarks.overhead.result import OverheadResult
            from otter_cli.reports.overhead import overhead_report

            return OverheadResult, overhead_report
        case "lm-eval":
            from otter_cli.benchmarks.lm_eval.run_lm_eval import LmEvalResult
            from otter_cli.reports.comparisons import lm_eval_report

            return LmEvalResult, lm_eval_report
        case "pairs":
            from otter_cli.benchmarks.tasks.pairs import PairsResult
            from otter_cli.reports.comparisons import pairs_report

            return PairsResult, pairs_report
        case _:
            from otter_cli.benchmarks.results import BenchmarkResult
            from otter_cli.reports.benchmark import benchmark_report

            return BenchmarkResult, benchmark_report
