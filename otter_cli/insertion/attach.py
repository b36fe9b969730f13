"""An adapter together with its base: the grafted folder again, checked file by file."""

from __future__ import annotations

from pathlib import Path

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.checkpoint.place import Mode, place_files
from otter_cli.core.atomic import staged_folder
from otter_cli.core.errors import OtterError
from otter_cli.core.provenance import provenance
from otter_cli.families import base_shape
from otter_cli.insertion.check import check_base
from otter_cli.insertion.manifest import BaseRecord, Manifest
from otter_cli.insertion.placing import place_base
from otter_cli.insertion.plan import Plan
from otter_cli.insertion.storage import open_stored, stored_files


def attach(
    adapter: Path,
    base: Checkpoint,
    out: Path,
    *,
    source: str,
    revision: str | None = None,
    mode: Mode = "link",
) -> Manifest:
    """Writes OUT whole or not at all: the adapter beside its base. Raises OtterError where weights
    or configuration are not by their digests those that it was made for; what else lies in the
    base, a README say, may have changed since."""
    manifest = Manifest.read(adapter)
    shape = base_shape(base.config)
    _compare_sizes(base, manifest.base)
    check_base(base, shape)
    with staged_folder(out, sources=[adapter, base.path]) as staging:
        place_files(adapter, stored_files(adapter), staging, mode="copy")
        manifest.check_tensors(staging)
        open_stored(staging, [Plan(config, shape) for config in manifest.insertions])
        files = place_base(base.path, base.files, staging, mode=mode)
        for name, record in manifest.base.identity().items():
            if files[name] != record:
                raise _not_its_base(base.path / name, "its digest differs", manifest.base)
        origin = {"source": source, "revision": revision, "files": files}
        manifest = manifest.model_copy(
            update={
                "base": manifest.base.model_copy(update=origin),
                "provenance": [*manifest.provenance, provenance()],
            }
        )
        manifest.write(staging)
    return manifest


def _compare_sizes(base: Checkpoint, wanted: BaseRecord) -> None:
    """What can be told without reading gigabytes."""
    for name, record in wanted.identity().items():
        path = base.path / name
        if name not in base.files:
            raise _not_its_base(path, "it is missing", wanted)
        if path.stat().st_size != record.bytes:
            raise _not_its_base(path, "its size differs", wanted)
    for name in base.files:
        if name.endswith(".safetensors") and name not in wanted.files:
            raise _not_its_base(base.path / name, "the base had no such file", wanted)


def _not_its_base(path: Path, why: str, wanted: BaseRecord) -> OtterError:
    origin = wanted.source + (f"@{wanted.revision}" if wanted.revision else "")
    return OtterError(
        f"{path} is not the base of this adapter: {why}", hint=f"it was made for {origin}"
    )
