"""Replacing the inserted tensors of a grafted folder, whenever the process dies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from otter_cli.checkpoint.dtypes import Array
from otter_cli.checkpoint.writer import MAX_SHARD_BYTES
from otter_cli.core.digests import sha256_file
from otter_cli.insertion.manifest import InsertedRecord, Manifest
from otter_cli.insertion.plan import Plan
from otter_cli.insertion.storage import (
    put_in_place,
    remove_unused,
    spare_stem,
    stored_files,
    write_stored,
)


def update_tensors(
    folder: Path,
    plans: Sequence[Plan],
    manifest: Manifest,
    tensors: Mapping[str, Array],
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Manifest:
    """Replaces the inserted tensors (float32 arrays, one for each of the plans') and their record.

    Two files cannot be replaced at one instant. So otter.json first accepts both digests, then the
    tensors are put into place, then only the new ones count: a folder is whole whenever the
    process dies, and its record never claims more training than the tensors have had.
    """
    new = write_stored(
        folder,
        plans,
        tensors.__getitem__,
        stem=spare_stem(folder),
        max_shard_bytes=max_shard_bytes,
    )
    # What lies on disk, not what otter.json says: an earlier run may have died before the rename.
    entry = stored_files(folder)[0]
    both = InsertedRecord(
        file=entry, sha256=new.sha256, previous_sha256=sha256_file(folder / entry)
    )
    Manifest.read(folder).model_copy(update={"inserted": both}).write(folder)
    entry = put_in_place(folder, new.entry)
    only = InsertedRecord(file=entry, sha256=new.sha256)
    manifest = manifest.model_copy(update={"inserted": only})
    manifest.write(folder)
    remove_unused(folder)
    return manifest
