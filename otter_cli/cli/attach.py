"""`otter attach`: an adapter and its base become a grafted folder again."""

from pathlib import Path
from typing import Annotated

import typer

from otter_cli.cli.app import Outcome, verb, verb_app
from otter_cli.cli.placed import placed_line, placed_record

app = verb_app()


@verb(app, example="otter attach my-adapter org/name@main grafted")
def attach(
    adapter: Annotated[Path, typer.Argument(help="the adapter: otter.json and its tensors")],
    base: Annotated[str, typer.Argument(help="the base it was made for: a folder, or a hub id")],
    out: Annotated[Path, typer.Argument(help="the grafted folder to write")],
    copy: Annotated[
        bool, typer.Option("--copy", help="copy weights, rather than hard-link them")
    ] = False,
) -> Outcome:
    """Put an adapter beside its base again: weights and configuration must be the very ones."""
    from otter_cli.checkpoint.folder import Checkpoint
    from otter_cli.checkpoint.source import find_base
    from otter_cli.insertion.attach import attach as write

    source = find_base(base)
    manifest = write(
        adapter,
        Checkpoint.open(source.path, allow_otter=False),
        out,
        source=source.name,
        revision=source.revision,
        mode="copy" if copy else "link",
    )
    checked = len(manifest.base.identity())
    files = placed_record(source.path, manifest.base.files, out)
    data = {"out": out, "base": source.name, "revision": source.revision, "checked": checked}
    return Outcome(
        {**data, **files},
        lambda: (
            f"{out}: a grafted folder; {checked} files of the base are the recorded ones\n"
            + placed_line(files, source.path)
        ),
    )
