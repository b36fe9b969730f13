"""The inserted tensors on disk: one file, or shards and an index.

The index holds the digest of every shard, so one digest in otter.json covers either form.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from otter_cli.checkpoint.dtypes import Array
from otter_cli.checkpoint.safetensors_reader import ShardedTensors, read_shard_index
from otter_cli.checkpoint.safetensors_writer import MAX_SHARD_BYTES, TensorSpec, write_sharded
from otter_cli.core.atomic import sync_path
from otter_cli.core.digests import sha256_file
from otter_cli.core.errors import OtterError
from otter_cli.core.strict_files import read_json_object, resolve_inside
from otter_cli.graft.plan import Plan

FILE_STEM = "otter"
TENSORS_FILE = f"{FILE_STEM}.safetensors"
INDEX_FILE = f"{TENSORS_FILE}.index.json"
# Under any stem, and what a killed writer left of one.
_TENSOR_FILES = re.compile(
    r"\.?otter(-[ab])?(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?(\.otter-(staging|lock))?"
)
_RESTORE_HINT = "graft the base again, or restore the file"


@dataclass(frozen=True)
class StoredTensors:
    """Tensors that were written: the file of them all or the index of shards, and its digest."""

    entry: str
    sha256: str


def write_inserted_tensors(
    folder: Path,
    plans: Sequence[Plan],
    produce: Callable[[str], Array],
    *,
    stem: str = FILE_STEM,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> StoredTensors:
    specs = {
        slot.name: TensorSpec(plan.config.dtype, slot.shape)
        for plan in plans
        for slot in plan.slots
    }
    metadata = {"format": "pt", "otter": ",".join(plan.config.name for plan in plans)}
    records = write_sharded(folder, stem, specs, produce, metadata, max_shard_bytes=max_shard_bytes)
    entry = list(records)[-1]
    return StoredTensors(entry, records[entry]["sha256"])


def inserted_files(folder: Path) -> list[str]:
    """What holds the inserted tensors of `folder`, the entry first. Raises OtterError."""
    if (folder / TENSORS_FILE).is_file():
        return [TENSORS_FILE]
    if (folder / INDEX_FILE).is_file():
        return [INDEX_FILE, *sorted(set(read_shard_index(folder / INDEX_FILE).values()))]
    raise OtterError(f"{folder / TENSORS_FILE} is missing", hint=_RESTORE_HINT)


def check_inserted_digests(folder: Path, accepted: Container[str | None]) -> None:
    """Raises OtterError unless the entry has one of the accepted digests, and vouches for what
    else there is."""
    entry, *shards = inserted_files(folder)
    if sha256_file(resolve_inside(folder, entry)) not in accepted:
        raise _digest_error(folder / entry, "otter.json")
    metadata = read_json_object(folder / entry).get("metadata") if shards else None
    vouched = metadata.get("sha256") if isinstance(metadata, dict) else None
    for shard in shards:
        known = vouched.get(shard) if isinstance(vouched, dict) else None
        if sha256_file(resolve_inside(folder, shard)) != known:
            raise _digest_error(folder / shard, entry)


def open_inserted_tensors(folder: Path, plans: Iterable[Plan]) -> ShardedTensors:
    """The inserted tensors, by name, shape and dtype those of the plans. Raises OtterError."""
    entry = folder / inserted_files(folder)[0]
    weights = ShardedTensors.open(folder, FILE_STEM)
    expected = {slot.name: (plan.config.dtype, slot.shape) for plan in plans for slot in plan.slots}
    found = {name: (info.dtype, info.shape) for name, info in weights.tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if name not in expected or name not in found:
            what = "is missing" if name in expected else "is unexpected"
        elif found[name] != expected[name]:
            (dtype, form), (right, shape) = found[name], expected[name]
            what = f"is {dtype} {list(form)}, expected {right} {list(shape)}"
        else:
            continue
        raise OtterError(
            f"{entry}: tensor {name} {what}", hint="the file does not belong to this otter.json"
        )
    return weights


def spare_stem(folder: Path) -> str:
    """A stem under which new tensors can be written beside those that `folder` holds now."""
    used = inserted_files(folder)
    return next(
        stem
        for stem in (f"{FILE_STEM}-a", f"{FILE_STEM}-b")
        if not any(f.startswith(stem) for f in used)
    )


def put_in_place(folder: Path, entry: str) -> str:
    """Make `entry`, written under a spare stem, the folder's own, by one rename or one removal;
    returns its name then."""
    name = INDEX_FILE if entry.endswith(".index.json") else TENSORS_FILE
    (folder / entry).replace(folder / name)
    if name == INDEX_FILE:
        # A single file goes before an index: as long as it is there, the old tensors count.
        (folder / TENSORS_FILE).unlink(missing_ok=True)
    sync_path(folder)
    return name


def remove_unused_files(folder: Path) -> None:
    """Shards and indices that no longer count, or never did."""
    used = inserted_files(folder)
    for path in folder.iterdir():
        if _TENSOR_FILES.fullmatch(path.name) and path.name not in used:
            path.unlink()


def _digest_error(path: Path, keeper: str) -> OtterError:
    return OtterError(
        f"{path} is not the file that {keeper} records (its digest differs)",
        hint="it was changed or cut off after it was written",
    )
