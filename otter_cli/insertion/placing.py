"""Placing a base's files beside an insertion, with their records for otter.json."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from otter_cli.checkpoint.place import Digest, Mode, place_files
from otter_cli.core.console import progress
from otter_cli.insertion.manifest import FileRecord


def place_base(
    root: Path,
    files: Iterable[str],
    target: Path,
    *,
    mode: Mode,
    digest: Digest | None = None,
) -> dict[str, FileRecord]:
    """See place_files; tells how far it is, since hashing a large base takes a while."""
    files = list(files)
    total = sum((root / file).stat().st_size for file in files)
    label = "copying the base" if mode == "copy" else "digests of the base"
    with progress(total, label) as advance:
        placed = place_files(root, files, target, mode=mode, advance=advance, digest=digest)
    return {name: FileRecord.model_validate(record) for name, record in placed.items()}
