"""The additive layouts beside the grafted folder itself: the adapter alone, the base alone."""

from __future__ import annotations

from pathlib import Path

from otter_cli.checkpoint.place import place_files
from otter_cli.core.atomic import staged_folder
from otter_cli.insertion import MANIFEST, Manifest


def export_adapter(folder: Path, to: Path) -> list[str]:
    """The inserted tensors and otter.json alone; they load on this base and no other."""
    manifest = Manifest.read(folder)
    manifest.check_tensors(folder)
    files = [manifest.inserted.file, MANIFEST]
    with staged_folder(to) as staging:
        place_files(folder, files, staging, mode="copy")
    return files
