"""Training runs side by side, as a section of a report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from otter_cli.core.jsonlines import read_jsonlines
from otter_cli.core.units import count_text, seconds_text
from otter_cli.reports.page import Cell, Section, Table
from otter_cli.reports.plots import LinePlot, Series

if TYPE_CHECKING:
    from otter_cli.core.intervals import Interval
    from otter_cli.training import TrainResult


def training_section(runs: Mapping[str, TrainResult], lead: str) -> Section:
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
        cells = [_cell(run.signals.get(signal, {}).get(what)) for run in runs.values()]
        rows.append([f"{signal}: {what.replace('_', ' ')}", *cells])
    return Section("Training", [lead], [Table(["held out", *runs], rows)], _losses(runs))


def _cell(value: Interval | None) -> Cell:
    if value is None:
        return Cell("-")
    return Cell(f"{value.mean:.3f}", f"{value.low:.3f} to {value.high:.3f}, n = {value.n:,}")


def _losses(runs: Mapping[str, TrainResult]) -> list[LinePlot]:
    first = next(iter(runs.values()))
    curves = _curves(first.folder / "training" / "metrics.jsonl")
    return [
        LinePlot(f"Loss of {series.label} while training", "step", "loss", [series], True)
        for series in curves
    ]


def _curves(path: Path, parts: int = 60) -> list[Series]:
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
        curves.append(Series(name, [run[-1][0] for run in runs], means))
    return curves
