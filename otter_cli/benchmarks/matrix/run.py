"""Cells one after the other: trained, benchmarked, put into one table. Rerunning resumes.

matrix.yaml       the recipe as read
grafts/KEY/       a graft of each cell and seed, by what made it
runs/BENCH-KEY/   a run folder of each cell and seed
result.json, report.html, report.md
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from otter_cli.benchmarks.matrix.bench import benched
from otter_cli.benchmarks.matrix.over_seeds import OverSeeds, Seeded, over_seeds
from otter_cli.benchmarks.matrix.recipe import Cell, MatrixRecipe, cells
from otter_cli.benchmarks.matrix.train import FindRecipe, train_cell
from otter_cli.benchmarks.result_file import Part, ResultFile
from otter_cli.core.atomic import write_text
from otter_cli.core.console import say
from otter_cli.core.errors import OtterError
from otter_cli.core.provenance import provenance


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
    asked: MatrixRecipe, name: str, out: Path, find: FindRecipe, device: str = "cpu"
) -> MatrixResult:
    """`find`: the file of a training recipe, by its name. Raises OtterError."""
    out.mkdir(parents=True, exist_ok=True)
    written = asked.model_dump(mode="json")
    write_text(out / "matrix.yaml", yaml.safe_dump(written, sort_keys=False))
    planned = list(cells(asked))
    done: list[CellResult] = []
    for number, cell in enumerate(planned, 1):
        say(f"cell {number} of {len(planned)}: {cell.name}")
        done.append(_cell(asked, cell, out, find, device))
        _require(asked, cell, done)
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


def _cell(asked: MatrixRecipe, cell: Cell, out: Path, find: FindRecipe, device: str) -> CellResult:
    found: dict[str, dict[str, list[Seeded]]] = {}
    runs, parameters = [], None
    for seed in asked.seeds:
        trained = None
        if asked.trains:
            trained = train_cell(asked, cell.change, seed, find, out / "grafts", device)
            parameters = trained.parameters
        if asked.benchmark is None:
            assert trained is not None
            held_out, folder = trained.figures, trained.folder
            figures = {
                name: {metric: Seeded(value) for metric, value in of.items()}
                for name, of in held_out.items()
            }
        else:
            figures, folder = benched(asked, cell, seed, trained, find, out / "runs", device)
        runs.append(str(folder.relative_to(out)))
        for method, metrics in figures.items():
            for metric in asked.metrics:
                if metric in metrics:
                    found.setdefault(method, {}).setdefault(metric, []).append(metrics[metric])
    return CellResult(
        values=cell.values,
        parameters=parameters,
        figures={
            method: {metric: over_seeds(values) for metric, values in metrics.items()}
            for method, metrics in found.items()
        },
        runs=runs,
    )


def _require(asked: MatrixRecipe, cell: Cell, done: Sequence[CellResult]) -> None:
    """What an earlier cell has, a later one may be without: nothing flagged, no tokens seen."""
    known = {metric for each in done for of in each.figures.values() for metric in of}
    if missing := [metric for metric in asked.metrics if metric not in known]:
        raise OtterError(
            f"cell {cell.name!r} has no figure {missing[0]!r}",
            hint="metrics are those of the bench's result.json, or of held-out rows (accuracy)",
        )
