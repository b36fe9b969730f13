"""Pairwise accuracy as a report: sections down, judges across."""

from otter_cli.benchmarks.metrics.catalog import Metric
from otter_cli.benchmarks.pairs import PairsResult
from otter_cli.reports.figures import figure_cell, point
from otter_cli.reports.page import Cell, Report, Section, Table
from otter_cli.reports.plots import IntervalPlot

_SHARE = Metric("accuracy", "higher", "share")


def pairs_report(result: PairsResult) -> Report:
    judges = list(result.figures)
    sections = list(next(iter(result.figures.values())))
    count = next(iter(result.figures.values()))["all"].accuracy.n
    rows: list[list[Cell | str]] = []
    for name in sections:
        figures = [result.figures[judge][name] for judge in judges]
        rows.append(
            [f"{name}, {figures[0].accuracy.n} pairs"]
            + [figure_cell(figure.accuracy, _SHARE) for figure in figures]
        )
        if any(figure.ties.mean for figure in figures):
            rows.append(
                ["  of them ties", *(figure_cell(figure.ties, _SHARE) for figure in figures)]
            )
    points = [point(j, result.figures[j]["all"].accuracy, _SHARE) for j in judges]
    text = "The share of pairs whose better answer scores higher; equal scores count half."
    plot = IntervalPlot("Accuracy over all pairs", "accuracy, %", points, 50.0)
    table = Table(["accuracy, %", *judges], rows)
    facts = [
        ("pairs", f"{result.settings.file}, sha256 {result.settings.digest[:12]}"),
        ("cut", f"{result.settings.cut} texts, to their last tokens"),
        *((n, f"{j.name} ({j.kind}), sha256 {j.digest[:12]}") for n, j in result.judges.items()),
    ]
    return Report(
        f"Which answer is better: {result.settings.file}",
        f"{len(judges)} judges, {count} pairs.",
        [Section("Accuracy by section", [text], [table], [plot])],
        facts,
        result.model_dump(mode="json"),
    )
