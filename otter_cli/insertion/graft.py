"""Grafting writes the inserted tensors beside the base's untouched files; stripping leaves them out
again.

No torch: tensors are read and written one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.checkpoint.place import place_files
from otter_cli.checkpoint.writer import TensorSpec, write_tensors
from otter_cli.core.atomic import staged_folder
from otter_cli.core.digests import sha256_file
from otter_cli.core.errors import OtterError
from otter_cli.core.provenance import provenance
from otter_cli.insertion.check import check_base
from otter_cli.insertion.initialise import initial_value
from otter_cli.insertion.manifest import TENSORS, BaseRecord, FileRecord, InsertedRecord, Manifest
from otter_cli.insertion.plan import Plan
from otter_cli.insertion.price import base_parameters


def graft(
    base: Checkpoint,
    out: Path,
    plan: Plan,
    *,
    source: str | None = None,
    revision: str | None = None,
    mode: Literal["link", "copy"] = "link",
) -> Manifest:
    """Writes OUT whole or not at all: the base's files, otter.safetensors and otter.json. Raises
    OtterError."""
    check_base(base, plan)
    slots = {slot.name: slot for slot in plan.slots}
    with staged_folder(out) as staging:
        files = place_files(base.path, base.files, staging, mode=mode)
        digest = _write(
            staging / TENSORS, plan, lambda name: initial_value(slots[name], plan, base)
        )
        manifest = Manifest(
            base=BaseRecord(
                source=source or base.path.resolve().name,
                revision=revision,
                family=plan.shape.family.model_type,
                parameters=base_parameters(base, plan.shape),
                dtype=base.dtype,
                files={name: FileRecord.model_validate(record) for name, record in files.items()},
            ),
            insertions=[plan.config],
            inserted=InsertedRecord(sha256=digest),
            provenance=[provenance()],
        )
        manifest.write(staging)
    return manifest


def strip(folder: Path, to: Path, *, mode: Literal["link", "copy"] = "link") -> list[str]:
    """Gives the base back, byte for byte: exactly the files that otter.json records. Raises
    OtterError."""
    manifest = Manifest.read(folder)
    for name, record in manifest.base.files.items():
        path = folder / name
        if not path.is_file() or sha256_file(path) != record.sha256:
            raise OtterError(
                f"{path} is {'changed' if path.is_file() else 'missing'} since it was grafted",
                hint="the base can't be given back byte for byte; restore the file first",
            )
    with staged_folder(to) as staging:
        place_files(folder, list(manifest.base.files), staging, mode=mode)
    return list(manifest.base.files)


def update_tensors(
    folder: Path, plan: Plan, manifest: Manifest, tensors: Mapping[str, np.ndarray]
) -> Manifest:
    """Replaces the inserted tensors (float32 arrays, one for each of the plan's) and their record.

    Two files cannot be replaced at one instant. So otter.json first accepts both digests, then the
    tensors are renamed into place, then only the new one counts: a folder is whole whenever the
    process dies, and its record never claims more training than the tensors have had.
    """
    new = folder / f"{TENSORS}.new"
    digest = _write(new, plan, tensors.__getitem__)
    # What lies on disk, not what otter.json says: an earlier run may have died before the rename.
    both = InsertedRecord(sha256=digest, previous_sha256=sha256_file(folder / TENSORS))
    Manifest.read(folder).model_copy(update={"inserted": both}).write(folder)
    new.replace(folder / TENSORS)
    manifest = manifest.model_copy(update={"inserted": InsertedRecord(sha256=digest)})
    manifest.write(folder)
    return manifest


def _write(path: Path, plan: Plan, produce: Callable[[str], np.ndarray]) -> str:
    specs = {slot.name: TensorSpec(plan.config.dtype, slot.shape) for slot in plan.slots}
    metadata = {"format": "pt", "otter": plan.config.name}
    return write_tensors(path, specs, produce, metadata)["sha256"]
