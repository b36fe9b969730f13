"""`otter bench check`: compares a run's figures with expectations, for CI."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from otter_cli.cli.bench.group import app, option
from otter_cli.cli.command import Outcome, verb
from otter_cli.cli.tables import legend

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
    """Exit with 1 unless the whole 95 % interval of every figure keeps its bounds.

    Bounds are at_least and at_most, with `against: plain` for the paired difference and `by: mean`
    for the mean alone.
    """
    from otter_cli.benchmarks.results import BenchmarkResult
    from otter_cli.benchmarks.runner.compare import check_expectations, read_expectations

    checks = check_expectations(BenchmarkResult.read(run), read_expectations(expect))
    failed = sum(not check.holds for check in checks)
    return Outcome(
        {"run": run, "failed": failed, "checks": [c.model_dump(mode="json") for c in checks]},
        view=lambda: _view(checks, failed),
        exit_code=1 if failed else 0,
    )


def _view(checks: list[CheckedBound], failed: int) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(
        "", "method", "metric", "expected", "found", "n", box=None, header_style="bold",
        pad_edge=False,
    )  # fmt: skip
    for row in checks:
        figure = f"{row.figure.mean:.3g} ({row.figure.low:.3g} to {row.figure.high:.3g})"
        verdict = Text("holds", "green") if row.holds else Text("fails", "red")
        table.add_row(verdict, row.method, row.metric, row.bound, figure, f"{row.figure.n:,}")
    explained = (
        "expected: the bound; found: the mean and its 95 % interval over the prompts of the run; "
        "n: how many prompts"
    )
    return Group(
        table, legend(explained), f"{len(checks) - failed} of {len(checks)} expectations hold"
    )
