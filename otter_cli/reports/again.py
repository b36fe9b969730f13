"""The report of a folder's result, of whichever benchmark."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from otter_cli.benchmarks.result_file import ResultFile
from otter_cli.reports.page import Report


class _Named(ResultFile):
    model_config = ConfigDict(extra="ignore")

    benchmark: str


def report_again(folder: Path) -> tuple[ResultFile, Report]:
    """Reads the result and draws it. Raises OtterError where there is none, or it is damaged."""
    kind, draw = _of(_Named.read(folder).benchmark)
    result = kind.read(folder)
    return result, draw(result)


def _of(benchmark: str) -> tuple[type[ResultFile], Callable[[Any], Report]]:
    """What its result is, and what draws it; each imported where it is wanted."""
    match benchmark:
        case "matrix":
            from otter_cli.benchmarks.matrix.run import MatrixResult
            from otter_cli.reports.matrix import matrix_report

            return MatrixResult, matrix_report
        case "overhead":
            from otter_cli.benchmarks.overhead.result import OverheadResult
            from otter_cli.reports.overhead import overhead_report

            return OverheadResult, overhead_report
        case "lm-eval":
            from otter_cli.benchmarks.lm_eval.result import LmEvalResult
            from otter_cli.reports.lm_eval import lm_eval_report

            return LmEvalResult, lm_eval_report
        case "pairs":
            from otter_cli.benchmarks.pairs import PairsResult
            from otter_cli.reports.pairs import pairs_report

            return PairsResult, pairs_report
        case _:
            from otter_cli.benchmarks.result import Result
            from otter_cli.reports.benchmark import benchmark_report

            return Result, benchmark_report
