"""`otter bench compare`: the difference of two runs, paired by prompt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from otter_cli.cli.bench.group import app, option
from otter_cli.cli.command import Outcome, verb
from otter_cli.core.errors import OtterError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from otter_cli.benchmarks.runner.compare import RunComparison


@verb(
    app,
    example="""\
    otter bench compare runs/detox-0123456789 runs/detox-9876543210
    otter bench compare runs/old runs/new --methods insertion:insertion""",
)
def compare(
    run1: Annotated[Path, typer.Argument(help="a finished run's folder")],
    run2: Annotated[Path, typer.Argument(help="another run with the same prompts and sampling")],
    methods: Annotated[
        str | None, option("--methods", "ONE:OTHER (default: those of the same name)", "Methods")
    ] = None,
) -> Outcome:
    """Compare two runs, paired by prompt: the second minus the first.

    Runs with different settings are refused. Times were taken in two sessions, so other load on
    the machine is part of their difference.
    """
    from otter_cli.benchmarks.runner.compare import compare_runs

    comparison = compare_runs(run1, run2, _parse_methods(methods))
    return Outcome(comparison.model_dump(mode="json"), view=lambda: _view(comparison))


def _parse_methods(methods: str | None) -> tuple[str, str] | None:
    if methods is None:
        return None
    first, colon, second = methods.partition(":")
    if not (first and colon and second):
        raise OtterError(
            f"--methods {methods!r} is no ONE:OTHER", hint="for example insertion:args"
        )
    return first, second


def _view(comparison: RunComparison) -> RenderableType:
    from otter_cli.reports.comparisons import comparison_report
    from otter_cli.reports.terminal import terminal_page

    return terminal_page(comparison_report(comparison))
