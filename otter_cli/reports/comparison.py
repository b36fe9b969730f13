"""Two runs compared, as a report."""

from collections.abc import Iterator

from otter_cli.benchmarks.compare import Comparison, MethodComparison
from otter_cli.benchmarks.metrics.catalog import describe
from otter_cli.reports.figures import difference_cell, figure_cell, name_with_unit
from otter_cli.reports.page import Cell, Report, Section, Table


def comparison_report(found: Comparison) -> Report:
    one, other = found.runs
    return Report(
        f"{found.benchmark}: {other} against {one}",
        f"{found.prompts} prompts, the same for both; differences are the second less the first, "
        "paired by prompt, with 95 % bootstrap intervals.",
        [_section(method) for method in found.methods],
    )


def _section(method: MethodComparison) -> Section:
    same = method.first == method.second
    title = method.first if same else f"{method.second} against {method.first}"
    return Section(title, [], [Table(["", "first", "second", "difference"], list(_rows(method)))])


def _rows(method: MethodComparison) -> Iterator[list[Cell | str]]:
    for name, (first, second) in method.figures.items():
        if not any((first.low, first.high, second.low, second.high)):
            continue
        metric = describe(name)
        found = method.differences.get(name)
        cell = difference_cell(found, metric) if found else Cell("-")
        cells = (figure_cell(figure, metric) for figure in (first, second))
        yield [name_with_unit(metric), *cells, cell]
