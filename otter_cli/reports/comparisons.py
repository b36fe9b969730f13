"""Reports that compare: two runs, judges on pairs, base and graft in lm-eval, cells of a matrix.

A matrix has a table and a plot for each metric, with a row for each cell and a column for each
method. With more methods than cells it has a table for each cell, with a row for each method."""

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
    interval_text,
    name_with_unit,
    number_text,
    plot_point,
)


def comparison_report(comparison: RunComparison) -> Report:
    """Two runs, method by method."""
    first, second = comparison.runs
    return Report(
        f"{comparison.benchmark}: {second} against {first}",
        f"{comparison.prompts} prompts, the same for both. Differences are the second run minus "
        "the first, paired by prompt, with 95 % bootstrap intervals over the prompts of these two "
        "runs, and not over machines.",
        [_method_section(method) for method in comparison.methods],
    )


def _method_section(method: MethodComparison) -> ReportSection:
    same = method.first == method.second
    title = method.first if same else f"{method.second} against {method.first}"
    rows: list[list[Cell | str]] = []
    for name, (first, second) in method.figures.items():
        if not any((first.low, first.high, second.low, second.high)):
            continue
        metric, difference = metric_info(name), method.differences.get(name)
        cells = [figure_cell(first, metric), figure_cell(second, metric)]
        cells.append(difference_cell(difference, metric) if difference else Cell("-"))
        rows.append([name_with_unit(metric), *cells])
    return ReportSection(title, [], [ReportTable(["", "first", "second", "difference"], rows)])


_ACCURACY = Metric("accuracy", "higher", "share")


def pairs_report(result: PairsResult) -> Report:
    """The accuracy of each judge on pairs, by section."""
    judges = list(result.figures)
    sections = result.figures[judges[0]]
    count = sections["all"].accuracy.n
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
    text = "The share of pairs in which the better answer scores higher. Equal scores count half."
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
    """Whether base and graft agree on each document of each task, and their scores."""
    settings = result.settings
    cut = f", {settings.limit} documents of each" if settings.limit else ""
    return Report(
        f"lm-eval: {settings.folder}",
        f"{', '.join(settings.tasks)}{cut}; batch {settings.batch}, "
        f"{settings.dtype or 'the base’s dtype'} on {settings.device}",
        list(_lm_eval_sections(result)),
        list(result.provenance["versions"].items()),
        result.model_dump(mode="json"),
    )


def _lm_eval_sections(result: LmEvalResult) -> Iterator[ReportSection]:
    rows: list[list[Cell | str]] = [
        [
            task,
            _equal_cell(identity.equal, identity.documents),
            _equal_cell(identity.responses_equal, identity.responses),
            "-" if identity.first is None else f"document {identity.first}",
        ]
        for task, identity in result.identity.items()
    ]
    head = ["task", "documents equal", "responses equal", "first that differs"]
    outcome = "equal to the last bit" if result.holds else "not equal everywhere: see the red rows"
    text = f"Log-likelihoods and texts of the graft and of its base: {outcome}."
    yield ReportSection("Base and graft, document by document", [text], [ReportTable(head, rows)])
    yield ReportSection(
        "Scores", ["Mean and 95 % interval over documents."], [_lm_eval_scores(result)]
    )


def _lm_eval_scores(result: LmEvalResult) -> ReportTable:
    methods = [BASE, *([GUIDED] if GUIDED in result.metrics else [])]
    rows: list[list[Cell | str]] = []
    for task, figures in result.metrics[BASE].items():
        for name, figure in figures.items():
            cells = [_lm_eval_cell(result.metrics[method][task][name]) for method in methods]
            rows.append([f"{task}, {name} (n = {figure.n})", *cells])
    return ReportTable(["", "base, and graft", *methods[1:]], rows)


def _lm_eval_cell(figure: Estimate) -> Cell:
    return Cell(f"{figure.mean:.3f}", f"[{figure.low:.3f}, {figure.high:.3f}]")


def _equal_cell(equal: int, all: int) -> Cell:
    return Cell(f"{equal} of {all}", tone="good" if equal == all else "bad")


def matrix_report(result: MatrixResult) -> Report:
    """The metrics of every cell, over seeds."""
    seeds = f"{len(result.seeds)} seed{'s' * (len(result.seeds) > 1)}"
    cells = f"{len(result.cells)} cell{'s' * (len(result.cells) > 1)}"
    lead = f"{cells}, {seeds}: {', '.join(map(str, result.seeds))}."
    methods = {method for cell in result.cells for method in cell.figures}
    by_cell = len(result.cells) == 1 or len(methods) > len(result.cells)
    sections = list(_cell_sections(result) if by_cell else _metric_sections(result))
    text = (
        "Mean over seeds. The 95 % interval adds, in quadrature, Student's t over seeds and the "
        "runs' mean interval over prompts."
        if len(result.seeds) > 1
        else "One seed: its runs have intervals over prompts, and there is none over seeds."
    )
    sections[:1] = [replace(section, text=[text]) for section in sections[:1]]
    facts = [(cell.name, ", ".join(cell.runs)) for cell in result.cells]
    data = result.model_dump(mode="json")
    return Report(f"Matrix: {result.of}", lead, sections, facts, data)


def _cell_sections(result: MatrixResult) -> Iterator[ReportSection]:
    """A table for each cell: a row for each method, a column for each metric."""
    for cell in result.cells:
        rows: list[list[Cell | str]] = [
            [method, *(_seed_cell(figures.get(name)) for name in result.metrics)]
            for method, figures in cell.figures.items()
        ]
        table = ReportTable(["method", *map(_axis_label, result.metrics)], rows)
        measured = {name for figures in cell.figures.values() for name in figures}
        plots = [_matrix_plot(result, name, [cell]) for name in result.metrics if name in measured]
        yield ReportSection(cell.name if cell.values else "Methods", [], [table], plots)


def _metric_sections(result: MatrixResult) -> Iterator[ReportSection]:
    """A table for each metric: a row for each cell, a column for each method."""
    for name in result.metrics:
        table, plot = _cells_table(result, name), _matrix_plot(result, name, result.cells)
        yield ReportSection(_metric_title(name), [], [table], [plot])


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
    points = []
    for cell in cells:
        for method in methods:
            if (figure := cell.figures.get(method, {}).get(name)) is None:
                continue
            by_method = cell.name if len(methods) == 1 else f"{cell.name}: {method}"
            # One seed has no interval.
            low, high = (figure.mean if end is None else end for end in (figure.low, figure.high))
            label = method if len(cells) == 1 else by_method
            points.append(PlotPoint(label, figure.mean, low, high))
    return IntervalPlot(_metric_title(name), _axis_label(name), points)


def _methods_with(result: MatrixResult, name: str) -> list[str]:
    return list(
        dict.fromkeys(m for cell in result.cells for m, of in cell.figures.items() if name in of)
    )


def _seed_cell(figure: OverSeeds | None) -> Cell:
    if figure is None:
        return Cell("-")
    if figure.low is None or figure.high is None:
        return Cell(number_text(figure.mean), "one seed")
    return Cell(number_text(figure.mean), interval_text(figure.low, figure.high))


def _matrix_metric(name: str) -> Metric:
    own_name, over_plain, _ = name.partition(OVER_PLAIN)
    if over_plain:
        metric = _matrix_metric(own_name)
        return replace(metric, label=f"{metric.label} over plain")
    return metric_info(name) if name in METRICS else Metric(name)


def _axis_label(name: str) -> str:
    # Figures over seeds stay in the unit that they are stored in.
    metric = _matrix_metric(name)
    return metric.label if metric.unit == "share" else name_with_unit(metric)


def _metric_title(name: str) -> str:
    label = _matrix_metric(name).label
    return label[:1].upper() + label[1:]
