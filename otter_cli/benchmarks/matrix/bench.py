"""A cell's benchmark at one seed, with what was trained for it put in its place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from otter_cli.benchmarks.matrix.over_seeds import Seeded
from otter_cli.benchmarks.matrix.recipe import Cell, MatrixRecipe
from otter_cli.benchmarks.matrix.train import FindRecipe, Trained
from otter_cli.benchmarks.requests import REQUESTS
from otter_cli.benchmarks.result import MethodResult
from otter_cli.benchmarks.run import run as run_benchmark
from otter_cli.training.section import section_error

OVER_PLAIN = " over plain"


def benched(
    asked: MatrixRecipe,
    cell: Cell,
    seed: int,
    trained: Trained | None,
    find: FindRecipe,
    out: Path,
    device: str,
) -> tuple[dict[str, dict[str, Seeded]], Path]:
    """A run of a cell and seed: figures by method, and its folder. Raises OtterError."""
    assert asked.benchmark is not None
    wanted = REQUESTS[asked.benchmark]
    given: dict[str, Any] = {"seed": seed, "device": device}
    own = cell.change.bench
    if trained is not None:
        given["folder"] = trained.folder
        roles = {"head": "task_head", "separate": "reward_model"}
        given |= {roles[name]: path for name, path in trained.controls.items()}
        named = {**trained.controls, **trained.beside}
        own = {key: _filled(value, named) for key, value in own.items()}
    if asked.recipe is not None and "pairs" not in own:
        given |= {"recipe": find(asked.recipe), "data": asked.data}
    options = {key: value for key, value in given.items() if key in wanted.model_fields} | own
    try:
        request = wanted.model_validate(options)
    except ValidationError as error:
        raise section_error(error, f"the bench of cell {cell.name!r}", options) from None
    benchmark = request.benchmark()
    folder = out / f"{asked.benchmark}-{benchmark.settings().key[:10]}"
    methods = run_benchmark(benchmark, folder).result.methods
    return {name: _seeded(method) for name, method in methods.items()}, folder


def _seeded(method: MethodResult) -> dict[str, Seeded]:
    """A run's figures, and what it found against plain as `METRIC over plain`."""
    over = {f"{metric}{OVER_PLAIN}": figure for metric, figure in method.against_plain.items()}
    return {
        metric: Seeded(figure.mean, figure.mean - figure.low, figure.high - figure.mean)
        for metric, figure in {**method.metrics, **over}.items()
    }


def _filled(value: Any, folders: Mapping[str, Path]) -> Any:
    """`{q}` becomes the folder that was trained as q; other braces, of a template, stay."""
    if isinstance(value, list):
        return [_filled(inner, folders) for inner in value]
    if isinstance(value, str):
        for name, folder in folders.items():
            value = value.replace(f"{{{name}}}", str(folder))
    return value
