"""`otter bench check`: compares a run's figures with expectations, for CI."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from otter_cli.cli.bench.group import app, option
from otter_cli.cli.command import Outcome, verb

if TYPE_CHECKING:
    from rich.console import RenderableType

    from otter_cli.benchmarks.runner.compare import CheckedBound


@verb(app, example="otter bench check runs/speedup-0123456789 --expect expectations.yaml")
def check(
    run: Annotated[Path, typer.Argument(help="a run folder with a result.json")],
    expect: Annotated[
        Path,
        option(
            "--expect",
            "YAML, such as `expect: {insertion: {tokens_per_step: {at_least: 1.4}}}`",
            "Expectations",
        ),
    ],
) -> Outcome:
    """Exit 1 unless every bound is kept by the figure's whole 95 % interval.

    Bounds are at_least, at_most, with `against: plain` for the paired difference and `by: mean`
    for the mean alone.
    """
    from otter_cli.benchmarks.results import BenchmarkResult
    from otter_cli.benchmarks.runner.compare import check_expectations as checked
    from otter_cli.benchmarks.runner.compare import read_expectations

    found = checked(BenchmarkResult.read(run), read_expectations(expect))
    failed = sum(not one.holds for one in found)
    return Outcome(
        {"run": run, "failed": failed, "checks": [one.model_dump(mode="json") for one in found]},
        view=lambda: _view(found, failed),
        exit_code=1 if failed else 0,
    )


def _view(found: list[CheckedBound], failed: int) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(
        "", "method", "metric", "expected", "found", "n", box=None, header_style="bold",
        pad_edge=False,
    )  # fmt: skip
    for one in found:
        figure = f"{one.figure.mean:.3g} ({one.figure.low:.3g} to {one.figure.high:.3g})"
        verdict = Text("holds", "green") if one.holds else Text("fails", "red")
        table.add_row(verdict, one.method, one.metric, one.bound, figure, f"{one.figure.n:,}")
    total = len(found)
    return Group(table, f"{total - failed} of {total} expectations hold")
