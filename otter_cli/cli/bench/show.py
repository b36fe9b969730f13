"""From a benchmark to what its verb hands back: the run, its report beside it, its figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from otter_cli.cli.app import Outcome

if TYPE_CHECKING:
    from rich.console import RenderableType

    from otter_cli.benchmarks.benchmark import Benchmark
    from otter_cli.benchmarks.result import Result
    from otter_cli.benchmarks.result_file import ResultFile
    from otter_cli.reports import Report


def run_and_show(benchmark: Benchmark, out: Path | None) -> Outcome:
    from otter_cli.benchmarks.run import run

    finished = run(benchmark, out)
    return report_and_show(finished.result, finished.folder)


def report_and_show(result: Result, folder: Path) -> Outcome:
    """Draws a run's report again."""
    from otter_cli.reports.benchmark import benchmark_report

    return shown(result, benchmark_report(result), folder)


def shown(result: ResultFile, drawn: Report, folder: Path, *, failed: bool = False) -> Outcome:
    """Writes the report beside the result, and shows it."""
    from otter_cli.reports.files import write_report

    path = write_report(drawn, folder)
    data = {**result.model_dump(mode="json"), "run": folder, "report": path}
    return Outcome(data, view=lambda: _view(drawn, path), exit_code=int(failed))


def _view(report: Report, path: Path) -> RenderableType:
    from rich.console import Group

    from otter_cli.reports import terminal_page

    return Group(terminal_page(report), "", f"report: {path}")
