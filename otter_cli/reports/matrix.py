"""A matrix as a report: a table and a plot for each figure, cells down and methods across; where
methods are more than cells, a table for each cell, methods down and figures across."""

from collections.abc import Sequence
from dataclasses import replace

from otter_cli.benchmarks.matrix.bench import OVER_PLAIN
from otter_cli.benchmarks.matrix.over_seeds import OverSeeds
from otter_cli.benchmarks.matrix.run import CellResult, MatrixResult
from otter_cli.benchmarks.metrics.catalog import METRICS, Metric, describe
from otter_cli.core.units import count_text
from otter_cli.reports.figures import name_with_unit, number_text
from otter_cli.reports.page import Cell, Report, Section, Table
from otter_cli.reports.plots import IntervalPlot, Point


def matrix_report(result: MatrixResult) -> Report:
    seeds = f"{len(result.seeds)} seed{'s' * (len(result.seeds) > 1)}"
    cells = f"{len(result.cells)} cell{'s' * (len(result.cells) > 1)}"
    lead = f"{cells}, {seeds}: {', '.join(map(str, result.seeds))}."
    text = [
        "Mean over seeds. Its 95 % interval is Student's t over seeds, widened by what a run's own "
        "interval over prompts reaches."
        if len(result.seeds) > 1
        else "One seed: its runs have intervals over prompts, and there is none over seeds."
    ]
    if _wide(result):
        sections = [
            Section(
                cell.name if cell.values else "Methods",
                [] if i else text,
                [_methods_table(result, cell)],
                [_plot(result, name, [cell]) for name in result.metrics if _has(cell, name)],
            )
            for i, cell in enumerate(result.cells)
        ]
    else:
        sections = [
            Section(
                _title(name),
                [] if i else text,
                [_table(result, name)],
                [_plot(result, name, result.cells)],
            )
            for i, name in enumerate(result.metrics)
        ]
    facts = [(cell.name, ", ".join(cell.runs)) for cell in result.cells]
    data = result.model_dump(mode="json")
    return Report(f"Matrix: {result.of}", lead, sections, facts, data)


def _has(cell: CellResult, name: str) -> bool:
    return any(name in of for of in cell.figures.values())


def _wide(result: MatrixResult) -> bool:
    """Whether methods are for the rows, of which there are more."""
    methods = {method for cell in result.cells for method in cell.figures}
    return len(result.cells) == 1 or len(methods) > len(result.cells)


def _methods_table(result: MatrixResult, cell: CellResult) -> Table:
    rows: list[list[Cell | str]] = [
        [method, *(_figure(figures.get(name)) for name in result.metrics)]
        for method, figures in cell.figures.items()
    ]
    return Table(["method", *map(_axis, result.metrics)], rows)


def _table(result: MatrixResult, name: str) -> Table:
    methods = _methods(result, name)
    sized = any(cell.parameters for cell in result.cells)
    rows: list[list[Cell | str]] = []
    for cell in result.cells:
        size = [count_text(cell.parameters or 0)] if sized else []
        figures = [cell.figures.get(method, {}).get(name) for method in methods]
        rows.append([cell.name, *size, *map(_figure, figures)])
    columns = ["cell", *(["trained"] if sized else []), *methods]
    return Table(columns, rows)


def _plot(result: MatrixResult, name: str, cells: Sequence[CellResult]) -> IntervalPlot:
    methods = _methods(result, name)
    points = [
        Point(_label(cell, method, len(cells), len(methods)), *_reach(figure))
        for cell in cells
        for method in methods
        if (figure := cell.figures.get(method, {}).get(name)) is not None
    ]
    return IntervalPlot(_title(name), _axis(name), points)


def _label(cell: CellResult, method: str, cells: int, methods: int) -> str:
    if cells == 1:
        return method
    return cell.name if methods == 1 else f"{cell.name}: {method}"


def _reach(figure: OverSeeds) -> tuple[float, float, float]:
    low, high = (figure.mean if bound is None else bound for bound in (figure.low, figure.high))
    return figure.mean, low, high


def _methods(result: MatrixResult, name: str) -> list[str]:
    return list(
        dict.fromkeys(m for cell in result.cells for m, of in cell.figures.items() if name in of)
    )


def _figure(figure: OverSeeds | None) -> Cell:
    if figure is None:
        return Cell("-")
    if figure.low is None or figure.high is None:
        return Cell(number_text(figure.mean), "one seed")
    return Cell(
        number_text(figure.mean), f"{number_text(figure.low)} to {number_text(figure.high)}"
    )


def _metric(name: str) -> Metric:
    of, over, _ = name.partition(OVER_PLAIN)
    if over:
        return replace(_metric(of), label=f"{_metric(of).label} over plain")
    return describe(name) if name in METRICS else Metric(name)


def _axis(name: str) -> str:
    # Figures over seeds stay in the unit that they are stored in.
    metric = _metric(name)
    return metric.label if metric.unit == "share" else name_with_unit(metric)


def _title(name: str) -> str:
    label = _metric(name).label
    return label[:1].upper() + label[1:]
