"""Grafting writes the inserted tensors beside the base's untouched files.

No torch: tensors are read and written one at a time.
"""

from __future__ import annotations

from pathlib import Path

from otter_cli.checkpoint.dtypes import Array
from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.checkpoint.place import Mode
from otter_cli.checkpoint.writer import MAX_SHARD_BYTES
from otter_cli.core.atomic import staged_folder
from otter_cli.core.console import progress
from otter_cli.core.provenance import provenance
from otter_cli.families.parameters import base_parameters
from otter_cli.insertion.check import check_base
from otter_cli.insertion.manifest import BaseRecord, InsertedRecord, Manifest
from otter_cli.insertion.placing import place_base
from otter_cli.insertion.plan import Plan
from otter_cli.insertion.storage import write_stored


def graft(
    base: Checkpoint,
    out: Path,
    plan: Plan,
    *,
    source: str | None = None,
    revision: str | None = None,
    mode: Mode = "link",
    max_shard_bytes: int = MAX_SHARD_BYTES,
    checked: bool = False,
) -> Manifest:
    """Writes OUT whole or not at all: the base's files, otter.safetensors and otter.json. Raises
    OtterError. `checked`: the base has passed `check_base` already."""
    # With numpy, for which a plan's price alone should not wait.
    from otter_cli.insertion.initialise import initial_value

    if not checked:
        check_base(base, plan.shape)
    slots = {slot.name: slot for slot in plan.slots}
    with staged_folder(out, sources=[base.path]) as staging:
        files = place_base(base.path, base.files, staging, mode=mode)
        with progress(plan.parameters, "inserted parameters") as advance:

            def produce(name: str) -> Array:
                advance(slots[name].count)
                return initial_value(slots[name], plan, base)

            stored = write_stored(staging, [plan], produce, max_shard_bytes=max_shard_bytes)
        manifest = Manifest(
            base=BaseRecord(
                source=source or base.path.resolve().name,
                revision=revision,
                family=plan.shape.family.model_type,
                parameters=base_parameters(base, plan.shape),
                dtype=base.dtype,
                files=files,
            ),
            insertions=[plan.config],
            inserted=InsertedRecord(file=stored.entry, sha256=stored.sha256),
            provenance=[provenance()],
        )
        manifest.write(staging)
    return manifest
