"""The report of a folder's result, of whichever benchmark."""

from __future__ import annotations

from pathlib import Path

from pydantic import ConfigDict

from otter_cli.benchmarks.result_file import ResultFile
from otter_cli.reports.page import Report


class _Kind(ResultFile):
    model_config = ConfigDict(extra="ignore")

    benchmark: str


def report_again(folder: Path) -> tuple[ResultFile, Report]:
    """Reads the result and draws it. Raises OtterError where there is none, or it is damaged."""
    match _Kind.read(folder).benchmark:
        case "matrix":
            from otter_cli.benchmarks.matrix.run import MatrixResult
            from otter_cli.reports.matrix import matrix_report

            cells = MatrixResult.read(folder)
            return cells, matrix_report(cells)
        case "overhead":
            from otter_cli.benchmarks.overhead.result import OverheadResult
            from otter_cli.reports.overhead import overhead_report

            costs = OverheadResult.read(folder)
            return costs, overhead_report(costs)
        case "lm-eval":
            from otter_cli.benchmarks.lm_eval.result import LmEvalResult
            from otter_cli.reports.lm_eval import lm_eval_report

            tasks = LmEvalResult.read(folder)
            return tasks, lm_eval_report(tasks)
        case "pairs":
            from otter_cli.benchmarks.pairs import PairsResult
            from otter_cli.reports.pairs import pairs_report

            pairs = PairsResult.read(folder)
            return pairs, pairs_report(pairs)
        case _:
            from otter_cli.benchmarks.result import Result
            from otter_cli.reports.benchmark import benchmark_report

            methods = Result.read(folder)
            return methods, benchmark_report(methods)
