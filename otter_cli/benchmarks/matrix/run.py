"""Cells one after the other: trained, benchmarked, put into one table. Rerunning resumes.

matrix.yaml       the recipe as read
grafts/KEY/       a graft of each cell and seed, by what made it
runs/BENCH-KEY/   a run folder of each cell and seed
result.json, report.html, report.md
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from pydantic import ValidationError

from otter_cli.benchmarks.matrix.recipe import Cell, MatrixRecipe, cells
from otter_cli.benchmarks.matrix.train import Trained, train_cell
from otter_cli.benchmarks.requests import REQUESTS
from otter_cli.benchmarks.result_file import Part, ResultFile
from otter_cli.benchmarks.run import run as run_benchmark
from otter_cli.core.atomic import write_text
from otter_cli.core.console import say
from otter_cli.core.errors import OtterError
from otter_cli.core.provenance import provenance
from otter_cli.training.section import section_error

# Two-sided 95 % of Student's t by degrees of freedom, 1 to 30; for more of them the last is wide.
_STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


class OverSeeds(Part):
    """Mean over seeds with its Student-t interval; of one seed there is none, and it says so."""

    mean: float
    low: float | None
    high: float | None
    n: int
    values: list[float]


class CellResult(Part):
    """`figures`: by method, then by metric. `runs`: folders below the matrix, one a seed."""

    values: dict[str, str]
    parameters: int | None
    figures: dict[str, dict[str, OverSeeds]]
    runs: list[str]

    @property
    def name(self) -> str:
        return ", ".join(f"{axis} {value}" for axis, value in self.values.items()) or "all"


class MatrixResult(ResultFile):
    schema_version: int = 1
    benchmark: Literal["matrix"] = "matrix"
    of: str
    recipe: dict[str, Any]
    metrics: list[str]
    seeds: list[int]
    cells: list[CellResult]
    provenance: dict[str, Any]


def run_matrix(
    asked: MatrixRecipe, name: str, out: Path, recipe: Path | None, device: str = "cpu"
) -> MatrixResult:
    """`recipe`: the training recipe's file, where cells train. Raises OtterError."""
    out.mkdir(parents=True, exist_ok=True)
    written = asked.model_dump(mode="json")
    write_text(out / "matrix.yaml", yaml.safe_dump(written, sort_keys=False))
    planned = list(cells(asked))
    done = []
    for number, cell in enumerate(planned, 1):
        say(f"cell {number} of {len(planned)}: {cell.name}")
        done.append(_cell(asked, cell, out, recipe, device))
    result = MatrixResult(
        of=name,
        recipe=written,
        metrics=list(asked.metrics),
        seeds=list(asked.seeds),
        cells=done,
        provenance=provenance(),
    )
    result.write(out)
    return result


def over_seeds(values: list[float]) -> OverSeeds:
    mean, n = float(np.mean(values)), len(values)
    if n == 1:
        return OverSeeds(mean=mean, low=None, high=None, n=1, values=values)
    t = _STUDENT[min(n - 1, len(_STUDENT)) - 1]
    reach = t * float(np.std(values, ddof=1)) / n**0.5
    return OverSeeds(mean=mean, low=mean - reach, high=mean + reach, n=n, values=values)


def _cell(
    asked: MatrixRecipe, cell: Cell, out: Path, recipe: Path | None, device: str
) -> CellResult:
    found: dict[str, dict[str, list[float]]] = {}
    runs, parameters = [], None
    for seed in asked.seeds:
        trained = None
        if recipe is not None:
            trained = train_cell(asked, cell.change, seed, recipe, out / "grafts", device)
            parameters = trained.parameters
        if asked.benchmark is None:
            assert trained is not None
            figures, folder = trained.figures, trained.folder
        else:
            figures, folder = _benched(asked, cell, seed, trained, out / "runs", device)
        runs.append(str(folder.relative_to(out)))
        for method, metrics in figures.items():
            for metric in asked.metrics:
                if metric in metrics:
                    found.setdefault(method, {}).setdefault(metric, []).append(metrics[metric])
    _require(asked, cell, found)
    return CellResult(
        values=cell.values,
        parameters=parameters,
        figures={
            method: {metric: over_seeds(values) for metric, values in metrics.items()}
            for method, metrics in found.items()
        },
        runs=runs,
    )


def _benched(
    asked: MatrixRecipe, cell: Cell, seed: int, trained: Trained | None, out: Path, device: str
) -> tuple[dict[str, dict[str, float]], Path]:
    assert asked.benchmark is not None
    options: dict[str, Any] = {"seed": seed, "device": device}
    if trained is not None:
        options["folder"] = trained.folder
        roles = {"head": "task_head", "separate": "reward_model"}
        options |= {roles[name]: path for name, path in trained.controls.items()}
        if asked.benchmark != "preference":
            options.pop("reward_model", None)
    options |= cell.change.bench
    try:
        request = REQUESTS[asked.benchmark].model_validate(options)
    except ValidationError as error:
        raise section_error(error, f"the bench of cell {cell.name!r}", options) from None
    benchmark = request.benchmark()
    folder = out / f"{asked.benchmark}-{benchmark.settings().key[:10]}"
    methods = run_benchmark(benchmark, folder).result.methods
    return {
        name: {metric: figure.mean for metric, figure in method.metrics.items()}
        for name, method in methods.items()
    }, folder


def _require(asked: MatrixRecipe, cell: Cell, found: dict[str, dict[str, list[float]]]) -> None:
    known = {metric for metrics in found.values() for metric in metrics}
    missing = [metric for metric in asked.metrics if metric not in known]
    if missing:
        raise OtterError(
            f"cell {cell.name!r} has no figure {missing[0]!r}",
            hint="metrics are those of the bench's result.json, or of held-out rows (accuracy)",
        )
