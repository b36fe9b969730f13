"""The inserted tensors on disk: one file, or shards and an index that vouches for them.

The index holds the digest of every shard, so that one digest in otter.json covers either form.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from otter_cli.checkpoint.dtypes import Array
from otter_cli.checkpoint.links import resolve_inside
from otter_cli.checkpoint.strict_json import read_object
from otter_cli.checkpoint.weights import Weights, read_index
from otter_cli.checkpoint.writer import MAX_SHARD_BYTES, TensorSpec, write_sharded
from otter_cli.core.atomic import sync_path
from otter_cli.core.digests import sha256_file
from otter_cli.core.errors import OtterError
from otter_cli.insertion.plan import Plan

STEM = "otter"
TENSORS = f"{STEM}.safetensors"
INDEX = f"{TENSORS}.index.json"
# Under any stem, and what a killed writer left of one.
_PARTS = re.compile(
    r"\.?otter(-[ab])?(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?(\.otter-(staging|lock))?"
)
_RESTORE = "graft the base again, or restore the file"


@dataclass(frozen=True)
class Stored:
    """Tensors that were written: the file of them all or the index of shards, and its digest."""

    entry: str
    sha256: str


def write_stored(
    folder: Path,
    plans: Sequence[Plan],
    produce: Callable[[str], Array],
    *,
    stem: str = STEM,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Stored:
    specs = {
        slot.name: TensorSpec(plan.config.dtype, slot.shape)
        for plan in plans
        for slot in plan.slots
    }
    metadata = {"format": "pt", "otter": ",".join(plan.config.name for plan in plans)}
    records = write_sharded(folder, stem, specs, produce, metadata, max_shard_bytes=max_shard_bytes)
    entry = list(records)[-1]
    return Stored(entry, records[entry]["sha256"])


def stored_files(folder: Path) -> list[str]:
    """What holds the inserted tensors of `folder`, the entry first. Raises OtterError."""
    if (folder / TENSORS).is_file():
        return [TENSORS]
    if (folder / INDEX).is_file():
        return [INDEX, *sorted(set(read_index(folder / INDEX).values()))]
    raise OtterError(f"{folder / TENSORS} is missing", hint=_RESTORE)


def check_stored(folder: Path, accepted: Container[str | None]) -> None:
    """Raises OtterError unless the entry has one of the accepted digests, and vouches for what
    else there is."""
    entry, *shards = stored_files(folder)
    if sha256_file(resolve_inside(folder, entry)) not in accepted:
        raise _changed(folder / entry, "otter.json")
    metadata = read_object(folder / entry).get("metadata") if shards else None
    vouched = metadata.get("sha256") if isinstance(metadata, dict) else None
    for shard in shards:
        known = vouched.get(shard) if isinstance(vouched, dict) else None
        if sha256_file(resolve_inside(folder, shard)) != known:
            raise _changed(folder / shard, entry)


def open_stored(folder: Path, plans: Iterable[Plan]) -> Weights:
    """The inserted tensors, by name, shape and dtype those of the plans. Raises OtterError."""
    entry = folder / stored_files(folder)[0]
    weights = Weights.open(folder, STEM)
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
    used = stored_files(folder)
    return next(
        stem for stem in (f"{STEM}-a", f"{STEM}-b") if not any(f.startswith(stem) for f in used)
    )


def put_in_place(folder: Path, entry: str) -> str:
    """Make `entry`, written under a spare stem, the folder's own, by one rename or one removal;
    returns its name then."""
    name = INDEX if entry.endswith(".index.json") else TENSORS
    (folder / entry).replace(folder / name)
    if name == INDEX:
        # A single file goes before an index: as long as it is there, the old tensors count.
        (folder / TENSORS).unlink(missing_ok=True)
    sync_path(folder)
    return name


def remove_unused(folder: Path) -> None:
    """Shards and indices that no longer count, or never did."""
    used = stored_files(folder)
    for path in folder.iterdir():
        if _PARTS.fullmatch(path.name) and path.name not in used:
            path.unlink()


def _changed(path: Path, keeper: str) -> OtterError:
    return OtterError(
        f"{path} is not the file that {keeper} records (its digest differs)",
        hint="it was changed or cut off after it was written",
    )
