"""`otter bench report`: a run's report, drawn again."""

from pathlib import Path
from typing import Annotated

import typer

from otter_cli.cli.app import Outcome, verb
from otter_cli.cli.bench.app import app
from otter_cli.cli.bench.show import report_and_show


@verb(app, example="otter bench report runs/speedup-0123456789")
def report(
    run: Annotated[Path, typer.Argument(help="a run folder with a result.json")],
) -> Outcome:
    """Draw a run's report again from its result.json."""
    from otter_cli.benchmarks.result import Result

    return report_and_show(Result.read(run), run)
