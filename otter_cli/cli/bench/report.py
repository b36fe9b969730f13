"""`otter bench report`: draws the report of a run again, from its result.json."""

from pathlib import Path
from typing import Annotated

import typer

from otter_cli.cli.bench.group import app, show_report
from otter_cli.cli.command import Outcome, verb


@verb(app, example="otter bench report runs/speedup-0123456789")
def report(
    run: Annotated[Path, typer.Argument(help="a run folder with a result.json")],
) -> Outcome:
    """Draw the report of a run, a matrix or any other benchmark again, from its result.json."""
    from otter_cli.reports.report_files import report_again

    return show_report(*report_again(run), run)
