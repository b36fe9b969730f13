"""`otter compose`: joins the insertions of two grafts of one base in one folder."""

from pathlib import Path
from typing import Annotated

import typer

from otter_cli.cli.command import Outcome, verb, verb_app
from otter_cli.cli.placed_files import Copy, PlacedFiles, placement_mode

app = verb_app()


@verb(app, example="otter compose with-reward with-toxicity both")
def compose(
    first: Annotated[Path, typer.Argument(metavar="A", help="a grafted folder")],
    second: Annotated[Path, typer.Argument(metavar="B", help="another graft of the same base")],
    to: Annotated[Path, typer.Argument(help="the grafted folder to write")],
    copy: Copy = False,
) -> Outcome:
    """Join two grafts of one base. One pass then gives the signals of both, as they were trained.

    If both insertions have the same name, the second one is renamed after its folder.
    """
    from otter_cli.graft.surgery import compose as compose_grafts

    manifest = compose_grafts(first, second, to, mode=placement_mode(copy))
    signals = {c.name: [signal.name for signal in c.signals] for c in manifest.insertions}
    listed = "; ".join(f"{insertion} ({', '.join(names)})" for insertion, names in signals.items())
    placed = PlacedFiles.find(first, manifest.base.files, to)
    return Outcome(
        {"out": to, "insertions": signals, **placed.record()}, lambda: f"{to}: {listed}\n{placed}"
    )
