"""The base's files in the folder that graft, attach, strip or compose writes: links or copies.

A hard link shares its bytes with the source, so a change in one changes the other. The verbs say
which files are links.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from otter_cli.checkpoint.link_or_copy import PlacementMode


Copy = Annotated[
    bool, typer.Option("--copy", help="copy the base's weights instead of hard-linking them")
]


def placement_mode(copy: bool) -> PlacementMode:
    """The value of --copy as the functions that write folders take it."""
    return "copy" if copy else "link"


def placed_files_record(source: Path, files: Iterable[str], out: Path) -> dict[str, Any]:
    """Those of `files` that are in `out`, as hard links to `source` (`linked`) or as `copied`."""
    from otter_cli.checkpoint.link_or_copy import hard_linked

    present = [file for file in files if (out / file).is_file()]
    linked = hard_linked(source, present, out)
    return {"linked": linked, "copied": [file for file in present if file not in linked]}


def placed_files_text(record: dict[str, Any], source: Path | str) -> str:
    """The record of `placed_files_record` as one line for people."""
    linked, copied = record["linked"], record["copied"]
    if not linked:
        return f"{len(copied)} files of {source} are copies"
    names = ", ".join(linked[:3]) + (f" and {len(linked) - 3} more" if len(linked) > 3 else "")
    be, them = ("is a hard link", "it") if len(linked) == 1 else ("are hard links", "them")
    rest = f"; {len(copied)} files are copies" if copied else ""
    return f"{names} {be}: a change in {them} changes {source} too{rest}"
