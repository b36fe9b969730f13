"""A training run as a section of a report, and the model card of a trained folder.

The card lists data, objectives, held-out figures with intervals, and the verdict on the base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otter_cli.core.formatting import bytes_text, count_text, seconds_text
from otter_cli.core.jsonlines import read_jsonlines
from otter_cli.reports.page import (
    Cell,
    LinePlot,
    PlotSeries,
    Report,
    ReportSection,
    ReportTable,
    named_values,
)

if TYPE_CHECKING:
    from otter_cli.core.intervals import Interval
    from otter_cli.training.recipe import Recipe
    from otter_cli.training.run import TrainResult
    from otter_cli.verification.report import Verdict


def training_section(runs: Mapping[str, TrainResult], lead: str) -> ReportSection:
    """Held-out figures by method, and the loss of each signal of the first run."""
    rows: list[list[Cell | str]] = [
        ["parameters trained", *(count_text(run.trained_parameters) for run in runs.values())],
        ["steps", *(str(run.steps) for run in runs.values())],
        ["time", *(seconds_text(run.seconds) for run in runs.values())],
    ]
    names = [
        (signal, figure)
        for run in runs.values()
        for signal, figures in run.signals.items()
        for figure in figures
    ]
    for signal, figure in dict.fromkeys(names):
        cells = [_interval_cell(run.signals.get(signal, {}).get(figure)) for run in runs.values()]
        rows.append([f"{signal}: {figure.replace('_', ' ')}", *cells])
    first = next(iter(runs.values()))
    plots = [
        LinePlot(f"Loss of {series.label} while training", "step", "loss", [series], True)
        for series in _loss_curves(first.folder / "training" / "metrics.jsonl")
    ]
    return ReportSection("Training", [lead], [ReportTable(["held out", *runs], rows)], plots)


def _interval_cell(value: Interval | None) -> Cell:
    if value is None:
        return Cell("-")
    return Cell(f"{value.mean:.3f}", f"{value.low:.3f} to {value.high:.3f}, n = {value.n:,}")


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
    """`verdict`: of the folder on disk; None for a separate model, which contains no base."""
    figures = [
        [signal, name.replace("_", " "), f"{figure.mean:.4f}",
         f"{figure.low:.4f} to {figure.high:.4f}", f"{figure.n:,}"]
        for signal, values in result.signals.items()
        for name, figure in values.items()
    ]  # fmt: skip
    figures_table = ReportTable(["signal", "figure", "mean", "95 % interval", "n"], figures)
    figures_text = (
        "With 95 % bootstrap intervals over the held-out rows."
        if result.signals
        else "No data were held out: nothing is known of how well this works."
    )
    data_columns = ["signal", "part", "rows", "cut", "from", "sha256"]
    sections = [
        ReportSection("Held-out figures", [figures_text], [figures_table]),
        ReportSection("Data", tables=[ReportTable(data_columns, list(_data_rows(result.data)))]),
        ReportSection("Objectives", tables=[_objectives_table(recipe)]),
    ]
    if verdict is not None:
        text = f"Verdict: {verdict.name}. {verdict.sentence[:1].upper()}{verdict.sentence[1:]}"
        sections.append(ReportSection("The base", [text]))
    lead = (
        f"{result.steps} steps, {count_text(result.trained_parameters)} parameters trained in "
        f"{seconds_text(result.seconds)}."
    )
    return Report(
        f"Model card: {result.folder.resolve().name}", lead, sections, _card_facts(result, recipe)
    )


def _data_rows(data: Mapping[str, Any]) -> Iterator[list[Cell | str]]:
    for signal, record in data.items():
        for part in ("train", "validation", "test"):
            if part in record:
                # A part without a path was split from the training file.
                source = record[part] if "path" in record[part] else record["train"] | record[part]
                counts = f"{source['rows']:,}", f"{source['cut']:,}"
                yield [signal, part, *counts, source["path"], source["sha256"][:12]]
        if record.get("shared") is not None:
            yield [signal, "test rows seen in training", f"{record['shared']:,}", "", "", ""]


def _objectives_table(recipe: Recipe) -> ReportTable:
    """The recipe's options of each signal, without its files and without defaults."""
    rows: list[list[Cell | str]] = []
    for name, objective in recipe.signals.items():
        exclude = {"train", "test", "objective"}
        values = objective.model_dump(mode="json", exclude_defaults=True, exclude=exclude)
        options = ", ".join(f"{key}: {value}" for key, value in values.items())
        rows.append([name, objective.objective, options or "-"])
    return ReportTable(["signal", "objective", "options"], rows, numeric=False)


def _card_facts(result: TrainResult, recipe: Recipe) -> list[tuple[str, str]]:
    from otter_cli.core.provenance import provenance

    source = provenance()
    recipe_text = (
        f"sha256 {recipe.sha256()[:12]}, seed {recipe.seed}, {recipe.steps} steps of "
        f"{recipe.batch_size} rows, rate {recipe.learning_rate:g} ({recipe.schedule})"
    )
    return [
        ("recipe", recipe_text),
        ("activations kept for gradients", bytes_text(result.memory["activations"])),
        ("peak memory above the weights", bytes_text(result.memory["peak"])),
        ("time", source["time"]),
        ("command", " ".join(source["command"])),
        ("versions", named_values(source["versions"])),
        ("hardware", named_values(source["hardware"])),
    ]
