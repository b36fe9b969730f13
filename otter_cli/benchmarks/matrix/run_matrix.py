"""Cells one after the other: trained, benchmarked, put into one table. Rerunning resumes.

matrix.yaml       the recipe as read
grafts/KEY/       a graft of each cell and seed, named by the digest of its configuration
runs/BENCH-KEY/   a run folder of each cell and seed
result.json, report.html, report.md"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import yaml
from pydantic import ValidationError

from otter_cli.benchmarks.matrix.recipe import (
    CellChange,
    ExtraGraft,
    MatrixCell,
    MatrixRecipe,
    cell_name,
    matrix_cells,
)
from otter_cli.benchmarks.options import OPTIONS
from otter_cli.benchmarks.results import MethodResult, ResultFile, ResultPart
from otter_cli.benchmarks.runner.run_benchmark import run_benchmark
from otter_cli.benchmarks.tasks.assemble import assemble
from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.core.atomic import write_json, write_text
from otter_cli.core.console import say
from otter_cli.core.digests import sha256_file, sha256_json
from otter_cli.core.errors import OtterError
from otter_cli.core.provenance import provenance
from otter_cli.core.strict_config import config_error
from otter_cli.core.strict_files import read_own_json_object
from otter_cli.families.shape import base_shape
from otter_cli.graft.config import InsertionConfig, parse_layers, resolve_config
from otter_cli.graft.plan import Plan
from otter_cli.graft.surgery import graft
from otter_cli.signals.config import parse_signal
from otter_cli.training.recipe import Recipe, load_recipe
from otter_cli.training.run import train

# Two-sided 95 % of Student's t, by degrees of freedom from 1 to 30. The last serves for more.
_STUDENT_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
)  # fmt: skip

TRAINED_FILE = "trained.json"
# `METRIC over plain` is the paired difference from plain decoding.
OVER_PLAIN = " over plain"

FindRecipe = Callable[[str], Path]


class SeedFigure(NamedTuple):
    """A figure of one seed, and how far its interval over prompts reaches down and up; 0 where it
    has no interval."""

    mean: float
    below: float = 0.0
    above: float = 0.0


class OverSeeds(ResultPart):
    """Mean over `n` seeds, with a 95 % interval; of one seed there is none."""

    mean: float
    low: float | None
    high: float | None
    n: int
    values: list[float]


class CellResult(ResultPart):
    """`figures`: by method, then by metric. `runs`: a folder per seed, relative to the matrix."""

    values: dict[str, str]
    parameters: int | None
    figures: dict[str, dict[str, OverSeeds]]
    runs: list[str]

    @property
    def name(self) -> str:
        return cell_name(self.values)


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
    recipe: MatrixRecipe, name: str, out: Path, find: FindRecipe, device: str = "cpu"
) -> MatrixResult:
    """Runs every cell at every seed. `find`: the file of a training recipe, by its name. Raises
    OtterError."""
    out.mkdir(parents=True, exist_ok=True)
    written = recipe.model_dump(mode="json")
    write_text(out / "matrix.yaml", yaml.safe_dump(written, sort_keys=False))
    matrix = _Matrix(recipe, out, find, device)
    cells = list(matrix_cells(recipe))
    results: list[CellResult] = []
    for number, cell in enumerate(cells, 1):
        say(f"cell {number} of {len(cells)}: {cell.name}")
        results.append(matrix.run_cell(cell))
        require_metrics(recipe, cell, results)
        say(f"  {_cell_figures(results[-1], recipe.metrics)}")
    result = MatrixResult(
        of=name,
        recipe=written,
        metrics=list(recipe.metrics),
        seeds=list(recipe.seeds),
        cells=results,
        provenance=provenance(),
    )
    result.write(out)
    return result


def _cell_figures(cell: CellResult, metrics: Sequence[str]) -> str:
    """The figures of a finished cell in one line, while the next ones run."""
    texts = [
        f"{method} {metric} {figures[metric].mean:.4g}"
        for method, figures in cell.figures.items()
        for metric in metrics
        if metric in figures
    ]
    return ", ".join(texts)


def require_metrics(recipe: MatrixRecipe, cell: MatrixCell, results: Sequence[CellResult]) -> None:
    """Raises OtterError for a metric that no cell so far has. A later cell may lack one that an
    earlier cell has: `tokens_seen` is undefined where nothing is flagged."""
    known = {metric for result in results for of in result.figures.values() for metric in of}
    if missing := [metric for metric in recipe.metrics if metric not in known]:
        raise OtterError(
            f"cell {cell.name!r} has no figure {missing[0]!r}",
            hint="metrics are those of the bench's result.json, or of held-out rows (accuracy)",
        )


@dataclass(frozen=True)
class _TrainedCell:
    """What was trained for a cell and seed: a graft, its controls, and the grafts beside it.
    `figures`: of the held-out rows, by graft and metric."""

    folder: Path
    controls: Mapping[str, Path]
    beside: Mapping[str, Path]
    figures: dict[str, dict[str, float]]
    parameters: int


@dataclass(frozen=True)
class _Matrix:
    """A recipe with the folder that its cells run in."""

    recipe: MatrixRecipe
    out: Path
    find: FindRecipe
    device: str

    def run_cell(self, cell: MatrixCell) -> CellResult:
        figures: dict[str, dict[str, list[SeedFigure]]] = {}
        runs, trained = [], None
        for seed in self.recipe.seeds:
            trained = self.train_cell(cell.change, seed) if self.recipe.trains else None
            if self.recipe.benchmark is not None:
                of_seed, folder = self.bench_cell(cell, seed, trained)
            else:
                assert trained is not None
                folder = trained.folder
                of_seed = {
                    name: {metric: SeedFigure(value) for metric, value in values.items()}
                    for name, values in trained.figures.items()
                }
            runs.append(str(folder.relative_to(self.out)))
            for method, metrics in of_seed.items():
                for metric in self.recipe.metrics:
                    if metric in metrics:
                        values = figures.setdefault(method, {}).setdefault(metric, [])
                        values.append(metrics[metric])
        return CellResult(
            values=cell.values,
            parameters=trained.parameters if trained else None,
            figures={
                method: {metric: aggregate_seeds(values) for metric, values in metrics.items()}
                for method, metrics in figures.items()
            },
            runs=runs,
        )

    def train_cell(self, change: CellChange, seed: int) -> _TrainedCell:
        """Trains what is not trained yet; an unfinished training resumes."""
        assert self.recipe.recipe is not None
        main = ExtraGraft(recipe=self.recipe.recipe, graft=change.graft, train=change.train)
        place, training = self.make_graft(main, seed)
        folder = place / "graft"
        trained = {"insertion": self.train_once(folder, training, folder, None)}
        controls: dict[str, Path] = {
            baseline: place / baseline for baseline in self.recipe.baselines
        }
        for baseline, target in controls.items():
            trained[baseline] = self.train_once(folder, training, target, baseline)
        beside: dict[str, Path] = {}
        for name, extra in self.recipe.beside.items():
            place, training = self.make_graft(extra, seed)
            beside[name] = place / (extra.baseline or "graft")
            trained[name] = self.train_once(place / "graft", training, beside[name], extra.baseline)
        figures = {name: record["figures"] for name, record in trained.items()}
        return _TrainedCell(folder, controls, beside, figures, trained["insertion"]["parameters"])

    def make_graft(self, extra: ExtraGraft, seed: int) -> tuple[Path, Recipe]:
        """A folder named by what decides its training, with a graft in it, and the recipe."""
        assert self.recipe.base is not None
        base = Checkpoint.open(self.recipe.base)
        values = {**extra.train, "seed": seed}
        overrides = [f"{key}={json.dumps(value)}" for key, value in values.items()]
        training = load_recipe(self.find(extra.recipe), overrides, data=self.recipe.data)
        training = training.only(extra.signals)
        config = _insertion_config(base, extra.graft, seed)
        digests = {p.name: sha256_file(p) for p in sorted(base.path.glob("*.safetensors"))}
        decides = [config.model_dump(mode="json"), training.sha256(), digests]
        place = self.out / "grafts" / sha256_json([*decides, self.recipe.baselines])[:10]
        place.mkdir(parents=True, exist_ok=True)
        if not (place / "graft").exists():
            plan = Plan(config, base_shape(base.config))
            graft(base, place / "graft", plan, source=str(self.recipe.base))
        return place, training

    def train_once(self, folder: Path, recipe: Recipe, target: Path, baseline: Any) -> Any:
        """Held-out figures and parameters of a training, from its file if it is done."""
        file = target / "training" / TRAINED_FILE
        if file.exists():
            return read_own_json_object(file)
        say(f"training {target}")
        to = None if baseline is None else target
        result = train(folder, recipe, baseline=baseline, to=to, resume=True, device=self.device)
        figures = {
            f"{signal} {metric}" if len(result.signals) > 1 else metric: value.mean
            for signal, metrics in result.signals.items()
            for metric, value in metrics.items()
        }
        record = {"figures": figures, "parameters": result.trained_parameters}
        write_json(file, record)
        return record

    def bench_cell(
        self, cell: MatrixCell, seed: int, trained: _TrainedCell | None
    ) -> tuple[dict[str, dict[str, SeedFigure]], Path]:
        """Runs the benchmark of a cell and seed: figures by method and metric, and the run folder.
        Raises OtterError."""
        assert self.recipe.benchmark is not None
        model = OPTIONS[self.recipe.benchmark]
        own, values = cell.change.bench, {"seed": seed, "device": self.device}
        if trained is not None:
            roles = {"head": "task_head", "separate": "reward_model"}
            values |= {roles[name]: folder for name, folder in trained.controls.items()}
            values["folder"] = trained.folder
            named = {**trained.controls, **trained.beside}
            own = {key: _fill_folders(value, named) for key, value in own.items()}
        if self.recipe.recipe is not None and "pairs" not in own:
            values |= {"recipe": self.find(self.recipe.recipe), "data": self.recipe.data}
        values = {key: value for key, value in values.items() if key in model.model_fields} | own
        try:
            options = model.model_validate(values)
        except ValidationError as error:
            raise config_error(error, f"the bench of cell {cell.name!r}", values) from None
        benchmark = assemble(options)
        folder = self.out / "runs" / f"{benchmark.name}-{benchmark.settings().key[:10]}"
        methods = run_benchmark(benchmark, folder).result.methods
        return {name: _seed_figures(method) for name, method in methods.items()}, folder


def _insertion_config(base: Checkpoint, options: Mapping[str, Any], seed: int) -> InsertionConfig:
    shape = base_shape(base.config)
    sizes = {"seed": seed, **options}
    signals = sizes.pop("signal", ["reward"])
    texts = [signals] if isinstance(signals, str) else signals
    if "layers" in sizes:
        sizes["layers"] = parse_layers(str(sizes["layers"]), shape.layers)
    return resolve_config(shape, signals=tuple(map(parse_signal, texts)), **sizes)


def _fill_folders(value: Any, folders: Mapping[str, Path]) -> Any:
    """`{q}` becomes the folder that was trained as q. Other braces, of a template, stay."""
    if isinstance(value, list):
        return [_fill_folders(inner, folders) for inner in value]
    if isinstance(value, str):
        for name, folder in folders.items():
            value = value.replace(f"{{{name}}}", str(folder))
    return value


def _seed_figures(method: MethodResult) -> dict[str, SeedFigure]:
    over = {f"{metric}{OVER_PLAIN}": figure for metric, figure in method.against_plain.items()}
    return {
        metric: SeedFigure(figure.mean, figure.mean - figure.low, figure.high - figure.mean)
        for metric, figure in {**method.metrics, **over}.items()
    }


def aggregate_seeds(figures: Sequence[SeedFigure]) -> OverSeeds:
    """Mean over seeds with a 95 % interval: Student's t over the seeds and, in quadrature, the mean
    reach of the seeds' intervals over prompts. Seeds share prompts, so more seeds do not narrow
    that part."""
    values, n = [figure.mean for figure in figures], len(figures)
    mean = float(np.mean(values))
    if n == 1:
        return OverSeeds(mean=mean, low=None, high=None, n=1, values=values)
    t = _STUDENT_T[min(n - 1, len(_STUDENT_T)) - 1]
    seeds = t * float(np.std(values, ddof=1)) / n**0.5
    below, above = (
        float(np.hypot(seeds, np.mean(reach)))
        for reach in ([f.below for f in figures], [f.above for f in figures])
    )
    return OverSeeds(mean=mean, low=mean - below, high=mean + above, n=n, values=values)
