"""Cells one after the other: trained, benchmarked, put into one table. Rerunning resumes.

matrix.yaml       the recipe as read
grafts/KEY/       a graft of each cell and seed, named by the digest of what made it
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
    matrix_cells,
)
from otter_cli.benchmarks.options import OPTIONS
from otter_cli.benchmarks.results import MethodResult, ResultFile, ResultPart
from otter_cli.benchmarks.runner.run_benchmark import run_benchmark as run_benchmark
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

# Two-sided 95 % of Student's t by degrees of freedom, 1 to 30; for more of them the last is wide.
_STUDENT_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


class SeedFigure(NamedTuple):
    """A figure of one seed, and how far its interval over prompts reaches: 0 where it has none."""

    mean: float
    below: float = 0.0
    above: float = 0.0


class OverSeeds(ResultPart):
    """Mean over `n` seeds, with a 95 % interval; of one seed there is none, and it says so."""

    mean: float
    low: float | None
    high: float | None
    n: int
    values: list[float]


def aggregate_seeds(figures: Sequence[SeedFigure]) -> OverSeeds:
    """Student's t over the seeds and, in quadrature, the reach over prompts. Seeds share their
    prompts, so averaging over seeds is not taken to narrow that: it is the seeds' mean reach."""
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


TRAINED_FILE = "trained.json"

FindRecipe = Callable[[str], Path]


@dataclass(frozen=True)
class TrainedCell:
    """A graft of a cell and seed with its controls, and grafts beside it; `figures` of its
    held-out rows, by name."""

    folder: Path
    controls: Mapping[str, Path]
    beside: Mapping[str, Path]
    figures: dict[str, dict[str, float]]
    parameters: int


def train_cell(
    asked: MatrixRecipe, change: CellChange, seed: int, find: FindRecipe, out: Path, device: str
) -> TrainedCell:
    """Trains what is not there yet, below `out` under its key; an unfinished training goes on."""
    assert asked.base is not None and asked.recipe is not None
    own = ExtraGraft(recipe=asked.recipe, graft=change.graft, train=change.train)
    place, recipe = _make_graft(asked, own, seed, find, out)
    folder = place / "graft"
    figures = {"insertion": _train_once(folder, recipe, folder, None, device)}
    controls: dict[str, Path] = {}
    for baseline in asked.baselines:
        controls[baseline] = place / baseline
        figures[baseline] = _train_once(folder, recipe, controls[baseline], baseline, device)
    beside: dict[str, Path] = {}
    for name, one in asked.beside.items():
        place, recipe = _make_graft(asked, one, seed, find, out)
        beside[name] = place / (one.baseline or "graft")
        figures[name] = _train_once(place / "graft", recipe, beside[name], one.baseline, device)
    return TrainedCell(
        folder,
        controls,
        beside,
        {name: found["figures"] for name, found in figures.items()},
        figures["insertion"]["parameters"],
    )


def _make_graft(
    asked: MatrixRecipe, one: ExtraGraft, seed: int, find: FindRecipe, out: Path
) -> tuple[Path, Recipe]:
    """The folder of a graft, which is made there, by what decides it; and how it is trained."""
    assert asked.base is not None
    base = Checkpoint.open(asked.base)
    overrides = [f"{key}={json.dumps(value)}" for key, value in {**one.train, "seed": seed}.items()]
    loaded = load_recipe(find(one.recipe), overrides, data=asked.data).only(one.signals)
    config = _insertion_config(base, one.graft, seed)
    key = sha256_json(
        [config.model_dump(mode="json"), loaded.sha256(), _base_digests(base), asked.baselines]
    )
    place = out / key[:10]
    place.mkdir(parents=True, exist_ok=True)
    if not (place / "graft").exists():
        plan = Plan(config, base_shape(base.config))
        graft(base, place / "graft", plan, source=str(asked.base))
    return place, loaded


def _train_once(
    folder: Path, recipe: Recipe, target: Path, baseline: Any, device: str
) -> dict[str, Any]:
    done = target / "training" / TRAINED_FILE
    if done.exists():
        found: dict[str, Any] = read_own_json_object(done)
        return found
    say(f"training {target}")
    to = None if baseline is None else target
    result = train(folder, recipe, baseline=baseline, to=to, resume=True, device=device)
    found = {
        "figures": {
            f"{signal} {what}" if len(result.signals) > 1 else what: value.mean
            for signal, metrics in result.signals.items()
            for what, value in metrics.items()
        },
        "parameters": result.trained_parameters,
    }
    write_json(done, found)
    return found


def _insertion_config(base: Checkpoint, options: Mapping[str, Any], seed: int) -> InsertionConfig:
    shape = base_shape(base.config)
    given = {"seed": seed, **options}
    signals = given.pop("signal", ["reward"])
    texts = [signals] if isinstance(signals, str) else signals
    if "layers" in given:
        given["layers"] = parse_layers(str(given["layers"]), shape.layers)
    return resolve_config(shape, signals=tuple(map(parse_signal, texts)), **given)


def _base_digests(base: Checkpoint) -> Any:
    return {p.name: sha256_file(p) for p in sorted(base.path.glob("*.safetensors"))}


OVER_PLAIN = " over plain"


def bench_cell(
    asked: MatrixRecipe,
    cell: MatrixCell,
    seed: int,
    trained: TrainedCell | None,
    find: FindRecipe,
    out: Path,
    device: str,
) -> tuple[dict[str, dict[str, SeedFigure]], Path]:
    """A run of a cell and seed: figures by method, and its folder. Raises OtterError."""
    assert asked.benchmark is not None
    wanted = OPTIONS[asked.benchmark]
    given: dict[str, Any] = {"seed": seed, "device": device}
    own = cell.change.bench
    if trained is not None:
        given["folder"] = trained.folder
        roles = {"head": "task_head", "separate": "reward_model"}
        given |= {roles[name]: path for name, path in trained.controls.items()}
        named = {**trained.controls, **trained.beside}
        own = {key: _fill_folders(value, named) for key, value in own.items()}
    if asked.recipe is not None and "pairs" not in own:
        given |= {"recipe": find(asked.recipe), "data": asked.data}
    options = {key: value for key, value in given.items() if key in wanted.model_fields} | own
    try:
        request = wanted.model_validate(options)
    except ValidationError as error:
        raise config_error(error, f"the bench of cell {cell.name!r}", options) from None
    benchmark = assemble(request)
    folder = out / f"{asked.benchmark}-{benchmark.settings().key[:10]}"
    methods = run_benchmark(benchmark, folder).result.methods
    return {name: _seed_figures(method) for name, method in methods.items()}, folder


def _seed_figures(method: MethodResult) -> dict[str, SeedFigure]:
    """A run's figures, and what it found against plain as `METRIC over plain`."""
    over = {f"{metric}{OVER_PLAIN}": figure for metric, figure in method.against_plain.items()}
    return {
        metric: SeedFigure(figure.mean, figure.mean - figure.low, figure.high - figure.mean)
        for metric, figure in {**method.metrics, **over}.items()
    }


def _fill_folders(value: Any, folders: Mapping[str, Path]) -> Any:
    """`{q}` becomes the folder that was trained as q; other braces, of a template, stay."""
    if isinstance(value, list):
        return [_fill_folders(inner, folders) for inner in value]
    if isinstance(value, str):
        for name, folder in folders.items():
            value = value.replace(f"{{{name}}}", str(folder))
    return value


class CellResult(ResultPart):
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
    planned = list(matrix_cells(asked))
    done: list[CellResult] = []
    for number, cell in enumerate(planned, 1):
        say(f"cell {number} of {len(planned)}: {cell.name}")
        done.append(_run_cell(asked, cell, out, find, device))
        require_metrics(asked, cell, done)
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


def _run_cell(
    asked: MatrixRecipe, cell: MatrixCell, out: Path, find: FindRecipe, device: str
) -> CellResult:
    found: dict[str, dict[str, list[SeedFigure]]] = {}
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
                name: {metric: SeedFigure(value) for metric, value in of.items()}
                for name, of in held_out.items()
            }
        else:
            figures, folder = bench_cell(asked, cell, seed, trained, find, out / "runs", device)
        runs.append(str(folder.relative_to(out)))
        for method, metrics in figures.items():
            for metric in asked.metrics:
                if metric in metrics:
                    found.setdefault(method, {}).setdefault(metric, []).append(metrics[metric])
    return CellResult(
        values=cell.values,
        parameters=parameters,
        figures={
            method: {metric: aggregate_seeds(values) for metric, values in metrics.items()}
            for method, metrics in found.items()
        },
        runs=runs,
    )


def require_metrics(asked: MatrixRecipe, cell: MatrixCell, done: Sequence[CellResult]) -> None:
    """What an earlier cell has, a later one may be without: nothing flagged, no tokens seen."""
    known = {metric for each in done for of in each.figures.values() for metric in of}
    if missing := [metric for metric in asked.metrics if metric not in known]:
        raise OtterError(
            f"cell {cell.name!r} has no figure {missing[0]!r}",
            hint="metrics are those of the bench's result.json, or of held-out rows (accuracy)",
        )
