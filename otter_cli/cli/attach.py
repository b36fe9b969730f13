"""`otter attach`: joins an adapter and its base into a grafted folder."""

from pathlib import Path
from typing import Annotated

import typer

from otter_cli.cli.command import Outcome, verb, verb_app
from otter_cli.cli.recipe_files import placed_files_record, placed_files_text

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
    from otter_cli.checkpoint.base_source import find_base
    from otter_cli.checkpoint.folder import Checkpoint
    from otter_cli.graft.surgery import attach as write

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
    files = placed_files_record(source.path, manifest.base.files, out)
    data = {"out": out, "base": source.name, "revision": source.revision, "checked": checked}
    return Outcome(
        {**data, **files},
        lambda: (
            f"{out}: a grafted folder; {checked} files of the base are the recorded ones\n"
            + placed_files_text(files, source.path)
        ),
    )
