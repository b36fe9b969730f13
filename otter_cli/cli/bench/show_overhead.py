"""From a measurement of overhead to what its verb hands back, and its files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from otter_cli.cli.app import Outcome

if TYPE_CHECKING:
    from otter_cli.benchmarks.overhead.result import OverheadResult


def finish(result: OverheadResult, out: Path | None) -> Outcome:
    """Writes result and report, and shows them."""
    from otter_cli.benchmarks.overhead.run import write
    from otter_cli.reports import terminal_page
    from otter_cli.reports.files import write_report
    from otter_cli.reports.overhead import overhead_report

    folder = out or Path("runs") / f"overhead-{result.settings.subject}"
    write(result, folder)
    drawn = overhead_report(result)
    path = write_report(drawn, folder)
    data = {**result.model_dump(mode="json"), "run": folder, "report": path}
    return Outcome(data, view=lambda: terminal_page(drawn))
