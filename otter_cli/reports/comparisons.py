"""Reports that compare: two runs, judges on pairs, base and graft in lm-eval, cells of a matrix.

A matrix has a table and a plot per metric, cells down and methods across. With more methods than
cells it has a table per cell, methods down and metrics across."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from otter_cli.benchmarks.lm_eval.run_lm_eval import BASE, GUIDED, LmEvalResult
from otter_cli.benchmarks.matrix.run_matrix import OVER_PLAIN, CellResult, MatrixResult, OverSeeds
from otter_cli.benchmarks.metrics.estimates import METRICS, Estimate, Metric, metric_info
from otter_cli.benchmarks.runner.compare import MethodComparison, RunComparison
from otter_cli.benchmarks.tasks.pairs import PairsResult
from otter_cli.core.formatting import count_text
from otter_cli.reports.page import (
    Cell,
    IntervalPlot,
    PlotPoint,
    Report,
    ReportSection,
    ReportTable,
    difference_cell,
    figure_cell,
    name_with_unit,
    number_text,
    plot_point,
)


def comparison_report(found: RunComparison) -> Report:
    one, other = found.runs
    return Report(
        f"{found.benchmark}: {other} against {one}",
        f"{found.prompts} prompts, the same for both; differences are the second less the first, "
        "paired by prompt, with 95 % bootstrap intervals.",
        [_method_section(method) for method in found.methods],
    )


def _method_section(method: MethodComparison) -> ReportSection:
    same = method.first == method.second
    title = method.first if same else f"{method.second} against {method.first}"
    return ReportSection(
        title,
        [],
        [ReportTable(["", "first", "second", "difference"], list(_difference_rows(method)))],
    )


def _difference_rows(method: MethodComparison) -> Iterator[list[Cell | str]]:
    for name, (first, second) in method.figures.items():
        if not any((first.low, first.high, second.low, second.high)):
            continue
        metric = metric_info(name)
        found = method.differences.get(name)
        cell = difference_cell(found, metric) if found else Cell("-")
        cells = (figure_cell(figure, metric) for figure in (first, second))
        yield [name_with_unit(metric), *cells, cell]


_ACCURACY = Metric("accuracy", "higher", "share")


def pairs_report(result: PairsResult) -> Report:
    judges = list(result.figures)
    sections = list(next(iter(result.figures.values())))
    count = next(iter(result.figures.values()))["all"].accuracy.n
    rows: list[list[Cell | str]] = []
    for name in sections:
        figures = [result.figures[judge][name] for judge in judges]
        rows.append(
            [f"{name}, {figures[0].accuracy.n} pairs"]
            + [figure_cell(figure.accuracy, _ACCURACY) for figure in figures]
        )
        if any(figure.ties.mean for figure in figures):
            rows.append(
                ["  of them ties", *(figure_cell(figure.ties, _ACCURACY) for figure in figures)]
            )
    points = [plot_point(j, result.figures[j]["all"].accuracy, _ACCURACY) for j in judges]
    text = "The share of pairs whose better answer scores higher; equal scores count half."
    plot = IntervalPlot("Accuracy over all pairs", "accuracy, %", points, 50.0)
    table = ReportTable(["accuracy, %", *judges], rows)
    facts = [
        ("pairs", f"{result.settings.file}, sha256 {result.settings.digest[:12]}"),
        ("cut", f"{result.settings.cut} texts, to their last tokens"),
        *((n, f"{j.name} ({j.kind}), sha256 {j.digest[:12]}") for n, j in result.judges.items()),
    ]
    return Report(
        f"Which answer is better: {result.settings.file}",
        f"{len(judges)} judges, {count} pairs.",
        [ReportSection("Accuracy by section", [text], [table], [plot])],
        facts,
        result.model_dump(mode="json"),
    )


def lm_eval_report(result: LmEvalResult) -> Report:
    settings = result.settings
    cut = f", {settings.limit} documents of each" if settings.limit else ""
    return Report(
        f"lm-eval: {settings.folder}",
        f"{', '.join(settings.tasks)}{cut}; batch {settings.batch}, "
        f"{settings.dtype or 'the base’s dtype'} on {settings.device}",
        list(_lm_eval_sections(result)),
        [(name, version) for name, version in result.provenance["versions"].items()],
        result.model_dump(mode="json"),
    )


def _lm_eval_sections(result: LmEvalResult) -> Iterator[ReportSection]:
    rows: list[list[Cell | str]] = [
        [
            task,
            _equal_cell(one.equal, one.documents),
            _equal_cell(one.responses_equal, one.responses),
            "-" if one.first is None else f"document {one.first}",
        ]
        for task, one in result.identity.items()
    ]
    head = ["task", "documents equal", "responses equal", "first that is not"]
    said = "to the last bit" if result.holds else "and not everywhere: see the rows in red"
    text = f"Log-likelihoods and texts of the graft beside its base's, {said}."
    yield ReportSection("Base and graft, document by document", [text], [ReportTable(head, rows)])
    yield ReportSection(
        "Scores", ["Mean and 95 % interval over documents."], [_lm_eval_scores(result)]
    )


def _lm_eval_scores(result: LmEvalResult) -> ReportTable:
    methods = [BASE, *([GUIDED] if GUIDED in result.metrics else [])]
    rows: list[list[Cell | str]] = [
        [
            f"{task}, {name} (n = {figure.n})",
            *(_lm_eval_cell(result, m, task, name) for m in methods),
        ]
        for task, figures in result.metrics[BASE].items()
        for name, figure in figures.items()
    ]
    return ReportTable(["", "base, and graft", *methods[1:]], rows)


def _lm_eval_cell(result: LmEvalResult, method: str, task: str, metric: str) -> Cell:
    found: Estimate = result.metrics[method][task][metric]
    return Cell(f"{found.mean:.3f}", f"[{found.low:.3f}, {found.high:.3f}]")


def _equal_cell(equal: int, all: int) -> Cell:
    return Cell(f"{equal} of {all}", tone="good" if equal == all else "bad")


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
    if _methods_down(result):
        sections = [
            ReportSection(
                cell.name if cell.values else "Methods",
                [] if i else text,
                [_methods_table(result, cell)],
                [
                    _matrix_plot(result, name, [cell])
                    for name in result.metrics
                    if _has_metric(cell, name)
                ],
            )
            for i, cell in enumerate(result.cells)
        ]
    else:
        sections = [
            ReportSection(
                _metric_title(name),
                [] if i else text,
                [_cells_table(result, name)],
                [_matrix_plot(result, name, result.cells)],
            )
            for i, name in enumerate(result.metrics)
        ]
    facts = [(cell.name, ", ".join(cell.runs)) for cell in result.cells]
    data = result.model_dump(mode="json")
    return Report(f"Matrix: {result.of}", lead, sections, facts, data)


def _has_metric(cell: CellResult, name: str) -> bool:
    return any(name in of for of in cell.figures.values())


def _methods_down(result: MatrixResult) -> bool:
    """Whether methods are for the rows, of which there are more."""
    methods = {method for cell in result.cells for method in cell.figures}
    return len(result.cells) == 1 or len(methods) > len(result.cells)


def _methods_table(result: MatrixResult, cell: CellResult) -> ReportTable:
    rows: list[list[Cell | str]] = [
        [method, *(_seed_cell(figures.get(name)) for name in result.metrics)]
        for method, figures in cell.figures.items()
    ]
    return ReportTable(["method", *map(_axis_label, result.metrics)], rows)


def _cells_table(result: MatrixResult, name: str) -> ReportTable:
    methods = _methods_with(result, name)
    sized = any(cell.parameters for cell in result.cells)
    rows: list[list[Cell | str]] = []
    for cell in result.cells:
        size = [count_text(cell.parameters or 0)] if sized else []
        figures = [cell.figures.get(method, {}).get(name) for method in methods]
        rows.append([cell.name, *size, *map(_seed_cell, figures)])
    columns = ["cell", *(["trained"] if sized else []), *methods]
    return ReportTable(columns, rows)


def _matrix_plot(result: MatrixResult, name: str, cells: Sequence[CellResult]) -> IntervalPlot:
    methods = _methods_with(result, name)
    points = [
        PlotPoint(_point_label(cell, method, len(cells), len(methods)), *_interval_ends(figure))
        for cell in cells
        for method in methods
        if (figure := cell.figures.get(method, {}).get(name)) is not None
    ]
    return IntervalPlot(_metric_title(name), _axis_label(name), points)


def _point_label(cell: CellResult, method: str, cells: int, methods: int) -> str:
    if cells == 1:
        return method
    return cell.name if methods == 1 else f"{cell.name}: {method}"


def _interval_ends(figure: OverSeeds) -> tuple[float, float, float]:
    low, high = (figure.mean if bound is None else bound for bound in (figure.low, figure.high))
    return figure.mean, low, high


def _methods_with(result: MatrixResult, name: str) -> list[str]:
    return list(
        dict.fromkeys(m for cell in result.cells for m, of in cell.figures.items() if name in of)
    )


def _seed_cell(figure: OverSeeds | None) -> Cell:
    if figure is None:
        return Cell("-")
    if figure.low is None or figure.high is None:
        return Cell(number_text(figure.mean), "one seed")
    return Cell(
        number_text(figure.mean), f"{number_text(figure.low)} to {number_text(figure.high)}"
    )


def _matrix_metric(name: str) -> Metric:
    of, over, _ = name.partition(OVER_PLAIN)
    if over:
        return replace(_matrix_metric(of), label=f"{_matrix_metric(of).label} over plain")
    return metric_info(name) if name in METRICS else Metric(name)


def _axis_label(name: str) -> str:
    # Figures over seeds stay in the unit that they are stored in.
    metric = _matrix_metric(name)
    return metric.label if metric.unit == "share" else name_with_unit(metric)


def _metric_title(name: str) -> str:
    label = _matrix_metric(name).label
    return label[:1].upper() + label[1:]
