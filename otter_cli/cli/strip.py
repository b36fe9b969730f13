"""`otter strip`: gives the base back."""

from pathlib import Path
from typing import Annotated

import typer

from otter_cli.cli.command import Outcome, verb, verb_app
from otter_cli.cli.recipe_files import placed_files_record, placed_files_text

app = verb_app()


@verb(app, example="otter strip grafted base-again")
def strip(
    folder: Annotated[Path, typer.Argument(help="the grafted folder")],
    to: Annotated[Path, typer.Argument(help="where the base goes")],
    copy: Annotated[
        bool, typer.Option("--copy", help="copy weights, rather than hard-link them")
    ] = False,
) -> Outcome:
    """Give the base back, byte for byte: every file is checked against its digest first."""
    from otter_cli.graft.surgery import strip as give_back

    files = give_back(folder, to, mode="copy" if copy else "link")
    placed = placed_files_record(folder, files, to)
    return Outcome(
        {"out": to, "files": list(files), **placed},
        view=lambda: (
            f"{to}: {len(files)} files, byte for byte as they were grafted\n"
            + placed_files_text(placed, folder)
        ),
    )
