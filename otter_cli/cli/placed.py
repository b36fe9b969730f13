"""What a verb that places a base's files says of them: which are shared, which are copies."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any


def placed_record(source: Path, files: Iterable[str], out: Path) -> dict[str, Any]:
    """`linked` files are hard links: a change in one of them changes the source too."""
    from otter_cli.checkpoint.place import hard_linked

    present = [file for file in files if (out / file).is_file()]
    linked = hard_linked(source, present, out)
    return {"linked": linked, "copied": [file for file in present if file not in linked]}


def placed_line(record: dict[str, Any], source: Path | str) -> str:
    """The same for people."""
    linked, copied = record["linked"], record["copied"]
    if not linked:
        return f"{len(copied)} files of {source} are copies"
    names = ", ".join(linked[:3]) + (f" and {len(linked) - 3} more" if len(linked) > 3 else "")
    be, them = ("is a hard link", "it") if len(linked) == 1 else ("are hard links", "them")
    rest = f"; {len(copied)} files are copies" if copied else ""
    return f"{names} {be}: a change in {them} changes {source} too{rest}"
