"""`otter bench report`: a run's report, drawn again."""

from pathlib import Path
from typing import Annotated

import typer

from otter_cli.cli.app import Outcome, verb
from otter_cli.cli.bench.app import app
from otter_cli.cli.bench.show import shown


@verb(app, example="otter bench report runs/speedup-0123456789")
def report(
    run: Annotated[Path, typer.Argument(help="a run folder with a result.json")],
) -> Outcome:
    """Draw a report again from its result.json: of a run, a matrix or any other bench."""
    from otter_cli.reports.again import report_again

    return shown(*report_again(run), run)
