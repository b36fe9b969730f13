"""`otter attach`: joins an adapter and its base into a grafted folder."""

from pathlib import Path
from typing import Annotated

import typer

from otter_cli.cli.command import Outcome, verb, verb_app
from otter_cli.cli.placed_files import Copy, PlacedFiles, placement_mode

app = verb_app()


@verb(app, example="otter attach my-adapter org/name@main grafted")
def attach(
    adapter: Annotated[Path, typer.Argument(help="the adapter: otter.json and its tensors")],
    base: Annotated[str, typer.Argument(help="the base it was made for: a folder, or a hub id")],
    out: Annotated[Path, typer.Argument(help="the grafted folder to write")],
    copy: Copy = False,
) -> Outcome:
    """Put an adapter beside its base again. The base must be the one that it was made for."""
    from otter_cli.checkpoint.base_source import find_base
    from otter_cli.checkpoint.folder import Checkpoint
    from otter_cli.graft.surgery import attach as attach_adapter

    source = find_base(base)
    manifest = attach_adapter(
        adapter,
        Checkpoint.open(source.path, allow_otter=False),
        out,
        source=source.name,
        revision=source.revision,
        mode=placement_mode(copy),
    )
    checked = len(manifest.base.identity())
    placed = PlacedFiles.find(source.path, manifest.base.files, out)
    data = {"out": out, "base": source.name, "revision": source.revision, "checked": checked}
    text = f"{out}: a grafted folder; {checked} files of the base are the recorded ones\n{placed}"
    return Outcome({**data, **placed.record()}, lambda: text)
