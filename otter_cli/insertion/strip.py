"""Stripping leaves the insertion out again: what remains is the base, byte for byte."""

from __future__ import annotations

from pathlib import Path

from otter_cli.checkpoint.place import Mode
from otter_cli.core.atomic import staged_folder
from otter_cli.core.digests import sha256_file
from otter_cli.core.errors import OtterError
from otter_cli.insertion.manifest import FileRecord, Manifest
from otter_cli.insertion.placing import place_base


def strip(folder: Path, to: Path, *, mode: Mode = "link") -> dict[str, FileRecord]:
    """Gives the base back: exactly the files that otter.json records, each read and compared with
    its digest. Raises OtterError."""
    recorded = Manifest.read(folder).base.files
    for name, record in recorded.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != record.bytes:
            raise _changed(path)
    with staged_folder(to, sources=[folder]) as staging:
        # Digests are taken anew: one that is remembered would not notice a forged time.
        placed = place_base(folder, list(recorded), staging, mode=mode, digest=sha256_file)
        for name, record in placed.items():
            if record != recorded[name]:
                raise _changed(folder / name)
    return placed


def _changed(path: Path) -> OtterError:
    return OtterError(
        f"{path} is {'changed' if path.is_file() else 'missing'} since it was grafted",
        hint="the base can't be given back byte for byte; restore the file first",
    )
