"""`otter compose`: two insertions on one base, in one folder."""

from pathlib import Path
from typing import Annotated

import typer

from otter_cli.cli.command import Outcome, verb, verb_app
from otter_cli.cli.recipe_files import placed_files_record, placed_files_text

app = verb_app()


@verb(app, example="otter compose with-reward with-toxicity both")
def compose(
    one: Annotated[Path, typer.Argument(metavar="A", help="a grafted folder")],
    other: Annotated[Path, typer.Argument(metavar="B", help="another graft of the same base")],
    to: Annotated[Path, typer.Argument(help="the grafted folder to write")],
    copy: Annotated[
        bool, typer.Option("--copy", help="copy weights, rather than hard-link them")
    ] = False,
) -> Outcome:
    """Join two grafts of one base: the signals of both out of one pass, each as it was trained.

    Of two insertions of one name the second is called after its folder.
    """
    from otter_cli.graft.surgery import compose as join

    manifest = join(one, other, to, mode="copy" if copy else "link")
    found = {c.name: [signal.name for signal in c.signals] for c in manifest.insertions}
    told = "; ".join(f"{name} ({', '.join(signals)})" for name, signals in found.items())
    placed = placed_files_record(one, manifest.base.files, to)
    return Outcome(
        {"out": to, "insertions": found, **placed},
        lambda: f"{to}: {told}\n" + placed_files_text(placed, one),
    )
