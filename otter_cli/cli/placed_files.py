"""The base's files in the folder that graft, attach, strip or compose writes: links or copies.

A hard link shares its bytes with the source, so a change in one changes the other. The verbs say
which files are links.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from otter_cli.checkpoint.link_or_copy import PlacementMode


Copy = Annotated[
    bool, typer.Option("--copy", help="copy the base's weights instead of hard-linking them")
]


def placement_mode(copy: bool) -> PlacementMode:
    """The placement mode that --copy selects."""
    return "copy" if copy else "link"


@dataclass(frozen=True)
class PlacedFiles:
    """Names of the files of `source` in another folder: hard links, and copies."""

    source: Path
    linked: list[str]
    copied: list[str]

    @classmethod
    def find(cls, source: Path, files: Iterable[str], out: Path) -> PlacedFiles:
        """Looks at those of `files` that are in `out`."""
        from otter_cli.checkpoint.link_or_copy import hard_linked

        present = [file for file in files if (out / file).is_file()]
        linked = hard_linked(source, present, out)
        return cls(source, linked, [file for file in present if file not in linked])

    def record(self) -> dict[str, list[str]]:
        return {"linked": self.linked, "copied": self.copied}

    def __str__(self) -> str:
        if not self.linked:
            return f"{len(self.copied)} files of {self.source} are copies"
        more = len(self.linked) - 3
        names = ", ".join(self.linked[:3]) + (f" and {more} more" if more > 0 else "")
        be, them = ("are hard links", "them") if self.linked[1:] else ("is a hard link", "it")
        rest = f"; {len(self.copied)} files are copies" if self.copied else ""
        return f"{names} {be}: a change in {them} changes {self.source} too{rest}"
