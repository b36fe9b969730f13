"""`otter strip`: writes the base of a graft as a folder of its own, byte for byte."""

from pathlib import Path
from typing import Annotated

import typer

from otter_cli.cli.command import Outcome, verb, verb_app
from otter_cli.cli.placed_files import Copy, PlacedFiles, placement_mode

app = verb_app()


@verb(app, example="otter strip grafted base-again")
def strip(
    folder: Annotated[Path, typer.Argument(help="the grafted folder")],
    to: Annotated[Path, typer.Argument(help="where the base goes")],
    copy: Copy = False,
) -> Outcome:
    """Write the base back, byte for byte. The digest of every file is checked first."""
    from otter_cli.graft.surgery import strip as strip_folder

    files = strip_folder(folder, to, mode=placement_mode(copy))
    placed = PlacedFiles.find(folder, files, to)
    text = f"{to}: {len(files)} files, byte for byte as they were grafted\n{placed}"
    return Outcome({"out": to, "files": list(files), **placed.record()}, lambda: text)
