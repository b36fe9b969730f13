"""A training run as a section of a report, and the model card of a trained folder.

The card lists data, objectives, held-out figures with intervals, and the verdict on the base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otter_cli.core.formatting import bytes_text, count_text, seconds_text
from otter_cli.core.jsonlines import read_jsonlines
from otter_cli.reports.page import Cell, LinePlot, PlotSeries, Report, ReportSection, ReportTable

if TYPE_CHECKING:
    from otter_cli.core.intervals import Interval
    from otter_cli.training.recipe import Recipe
    from otter_cli.training.run import TrainResult
    from otter_cli.verification.report import Verdict


def training_section(runs: Mapping[str, TrainResult], lead: str) -> ReportSection:
    """Held-out figures by method, and the loss of each signal of the first run."""
    figures = list(
        dict.fromkeys(
            (signal, what)
            for run in runs.values()
            for signal, found in run.signals.items()
            for what in found
        )
    )
    rows: list[list[Cell | str]] = [
        ["parameters trained", *(count_text(run.trained_parameters) for run in runs.values())],
        ["steps", *(str(run.steps) for run in runs.values())],
        ["time", *(seconds_text(run.seconds) for run in runs.values())],
    ]
    for signal, what in figures:
        cells = [_interval_cell(run.signals.get(signal, {}).get(what)) for run in runs.values()]
        rows.append([f"{signal}: {what.replace('_', ' ')}", *cells])
    return ReportSection(
        "Training", [lead], [ReportTable(["held out", *runs], rows)], _loss_plots(runs)
    )


def _interval_cell(value: Interval | None) -> Cell:
    if value is None:
        return Cell("-")
    return Cell(f"{value.mean:.3f}", f"{value.low:.3f} to {value.high:.3f}, n = {value.n:,}")


def _loss_plots(runs: Mapping[str, TrainResult]) -> list[LinePlot]:
    first = next(iter(runs.values()))
    curves = _loss_curves(first.folder / "training" / "metrics.jsonl")
    return [
        LinePlot(f"Loss of {series.label} while training", "step", "loss", [series], True)
        for series in curves
    ]


def _loss_curves(path: Path, parts: int = 60) -> list[PlotSeries]:
    """Losses by signal, averaged over neighbouring steps so that the trend shows."""
    losses: dict[str, list[tuple[int, float]]] = {}
    for record in read_jsonlines(path):
        for name, loss in record.get("loss", {}).items():
            losses.setdefault(name, []).append((record["step"], loss))
    curves = []
    for name, points in losses.items():
        width = max(1, len(points) // parts)
        runs = [points[i : i + width] for i in range(0, len(points), width)]
        means = [sum(loss for _, loss in run) / len(run) for run in runs]
        curves.append(PlotSeries(name, [run[-1][0] for run in runs], means))
    return curves


def model_card(result: TrainResult, recipe: Recipe, verdict: Verdict | None) -> Report:
    """`verdict` of the folder as it lies on disk; of a separate model, which has no base within,
    there is none."""
    sections = [
        ReportSection("Held-out figures", _figures_text(result), [_figures_table(result)]),
        ReportSection("Data", tables=[_data_table(result.data)]),
        ReportSection("Objectives", tables=[_objectives_table(recipe)]),
    ]
    if verdict is not None:
        text = [f"Verdict: {verdict.name}. {verdict.sentence[:1].upper()}{verdict.sentence[1:]}"]
        sections.append(ReportSection("The base", text))
    lead = (
        f"{result.steps} steps, {count_text(result.trained_parameters)} parameters trained in "
        f"{seconds_text(result.seconds)}."
    )
    return Report(
        f"Model card: {result.folder.resolve().name}", lead, sections, _card_facts(result, recipe)
    )


def _figures_text(result: TrainResult) -> list[str]:
    if not result.signals:
        return ["No data were held out: nothing is known of how well this works."]
    return ["With 95 % bootstrap intervals over the rows that were held out."]


def _figures_table(result: TrainResult) -> ReportTable:
    rows = [
        [name, what.replace("_", " "), f"{v.mean:.4f}", f"{v.low:.4f} to {v.high:.4f}", f"{v.n:,}"]
        for name, figures in result.signals.items()
        for what, v in figures.items()
    ]
    return ReportTable(["signal", "figure", "mean", "95 % interval", "n"], rows)


def _data_table(data: Mapping[str, Any]) -> ReportTable:
    return ReportTable(["signal", "part", "rows", "cut", "from", "sha256"], list(_data_rows(data)))


def _data_rows(data: Mapping[str, Any]) -> Iterator[list[Cell | str]]:
    for signal, record in data.items():
        for part in ("train", "validation", "test"):
            if part in record:
                of = record[part] if "path" in record[part] else {**record["train"], **record[part]}
                digest = of["sha256"][:12]
                yield [signal, part, f"{of['rows']:,}", f"{of['cut']:,}", of["path"], digest]
        if record.get("shared") is not None:
            yield [signal, "test rows seen in training", f"{record['shared']:,}", "", "", ""]


def _objectives_table(recipe: Recipe) -> ReportTable:
    """What a recipe says of each signal, but for its files and what stands at its default."""
    rows: list[list[Cell | str]] = []
    for name, objective in recipe.signals.items():
        said = objective.model_dump(mode="json", exclude_defaults=True, exclude={"train", "test"})
        options = ", ".join(f"{k}: {v}" for k, v in said.items() if k != "objective")
        rows.append([name, objective.objective, options or "-"])
    return ReportTable(["signal", "objective", "options"], rows, numeric=False)


def _card_facts(result: TrainResult, recipe: Recipe) -> list[tuple[str, str]]:
    from otter_cli.core.provenance import provenance

    made = provenance()
    recipe_text = (
        f"sha256 {recipe.sha256()[:12]}, seed {recipe.seed}, {recipe.steps} steps of "
        f"{recipe.batch_size} rows, rate {recipe.learning_rate:g} ({recipe.schedule})"
    )
    return [
        ("recipe", recipe_text),
        ("activations kept for gradients", bytes_text(result.memory["activations"])),
        ("peak memory above the weights", bytes_text(result.memory["peak"])),
        ("time", made["time"]),
        ("command", " ".join(made["command"])),
        ("versions", _listed(made["versions"])),
        ("hardware", _listed(made["hardware"])),
    ]


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
