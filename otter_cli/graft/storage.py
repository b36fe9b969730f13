"""The inserted tensors on disk: one safetensors file, or shards and an index.

The index holds the digest of every shard, so the one digest in otter.json covers either form. New
tensors are written beside the old ones under a spare stem, and one rename makes them count.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from otter_cli.checkpoint.dtypes import Array
from otter_cli.checkpoint.safetensors_reader import ShardedTensors, read_shard_index
from otter_cli.checkpoint.safetensors_writer import MAX_SHARD_BYTES, TensorSpec, write_sharded
from otter_cli.core.atomic import sync_path
from otter_cli.core.digests import sha256_file
from otter_cli.core.errors import OtterError
from otter_cli.core.strict_config import StrictRecord
from otter_cli.core.strict_files import read_json_object, resolve_inside
from otter_cli.graft.plan import Plan

FILE_STEM = "otter"
TENSORS_FILE = f"{FILE_STEM}.safetensors"
INDEX_FILE = f"{TENSORS_FILE}.index.json"
# Files of inserted tensors under any stem, and what a killed writer leaves of one.
_TENSOR_FILES = re.compile(
    r"\.?otter(-[ab])?(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?(\.otter-(staging|lock))?"
)


class InsertedRecord(StrictRecord):
    """The file of inserted tensors, or the index of their shards, and its digest.

    While `update_tensors` replaces the file, the digests of the old and the new one are both valid.
    """

    file: str = TENSORS_FILE
    sha256: str
    previous_sha256: str | None = None


def write_inserted_tensors(
    folder: Path,
    plans: Sequence[Plan],
    read: Callable[[str], Array],
    *,
    stem: str = FILE_STEM,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> InsertedRecord:
    """Writes the tensors of `plans` one at a time. `read` gives the values of a name."""
    specs = {
        tensor.name: TensorSpec(plan.config.dtype, tensor.shape)
        for plan in plans
        for tensor in plan.tensors
    }
    metadata = {"format": "pt", "otter": ",".join(plan.config.name for plan in plans)}
    records = write_sharded(folder, stem, specs, read, metadata, max_shard_bytes=max_shard_bytes)
    entry = list(records)[-1]
    return InsertedRecord(file=entry, sha256=records[entry]["sha256"])


def inserted_files(folder: Path) -> list[str]:
    """The files that hold the inserted tensors. The first is the single file or the index. Raises
    OtterError where there are none."""
    if (folder / TENSORS_FILE).is_file():
        return [TENSORS_FILE]
    if (folder / INDEX_FILE).is_file():
        return [INDEX_FILE, *sorted(set(read_shard_index(folder / INDEX_FILE).values()))]
    raise OtterError(
        f"{folder / TENSORS_FILE} is missing", hint="graft the base again, or restore the file"
    )


def check_inserted_digests(folder: Path, accepted: Container[str | None]) -> None:
    """Raises OtterError unless the single file or the index has one of the `accepted` digests, and
    every shard the digest that the index records."""
    entry, *shards = inserted_files(folder)
    if sha256_file(resolve_inside(folder, entry)) not in accepted:
        raise _digest_error(folder / entry, "otter.json")
    metadata = read_json_object(folder / entry).get("metadata") if shards else None
    recorded = metadata.get("sha256") if isinstance(metadata, dict) else None
    for shard in shards:
        digest = recorded.get(shard) if isinstance(recorded, dict) else None
        if sha256_file(resolve_inside(folder, shard)) != digest:
            raise _digest_error(folder / shard, entry)


def _digest_error(path: Path, record: str) -> OtterError:
    return OtterError(
        f"{path} is not the file that {record} records (its digest differs)",
        hint="it was changed or cut off after it was written",
    )


def open_inserted_tensors(folder: Path, plans: Iterable[Plan]) -> ShardedTensors:
    """The inserted tensors. Raises OtterError unless their names, shapes and dtypes are those of
    the plans."""
    entry = folder / inserted_files(folder)[0]
    weights = ShardedTensors.open(folder, FILE_STEM)
    planned = {t.name: (plan.config.dtype, t.shape) for plan in plans for t in plan.tensors}
    for name, what in plan_differences(weights, planned):
        raise OtterError(
            f"{entry}: tensor {name} {what}", hint="the file does not belong to this otter.json"
        )
    return weights


def plan_differences(
    weights: ShardedTensors, planned: Mapping[str, tuple[str, tuple[int, ...]]]
) -> Iterator[tuple[str, str]]:
    """The name of each tensor that is not as `planned` (dtype, shape), and how it differs."""
    for name in sorted(weights.tensors.keys() | planned.keys()):
        if name not in weights.tensors:
            yield name, "is missing"
        elif name not in planned:
            yield name, "is unexpected"
        else:
            info, (dtype, shape) = weights.tensors[name], planned[name]
            if (info.dtype, info.shape) != (dtype, shape):
                yield name, f"is {info.dtype} {list(info.shape)}, planned {dtype} {list(shape)}"


def spare_stem(folder: Path) -> str:
    """A file stem that the current tensors of `folder` do not use."""
    used = inserted_files(folder)
    return next(
        stem
        for stem in (f"{FILE_STEM}-a", f"{FILE_STEM}-b")
        if not any(file.startswith(stem) for file in used)
    )


def put_in_place(folder: Path, entry: str) -> str:
    """Makes `entry`, written under a spare stem, the folder's tensors. Returns its new name.

    One rename or one removal decides which tensors count.
    """
    name = INDEX_FILE if entry.endswith(".index.json") else TENSORS_FILE
    (folder / entry).replace(folder / name)
    if name == INDEX_FILE:
        # A single file has precedence over an index, so the old tensors count until it is removed.
        (folder / TENSORS_FILE).unlink(missing_ok=True)
    sync_path(folder)
    return name


def remove_unused_files(folder: Path) -> None:
    """Removes shards and indices that do not count."""
    used = inserted_files(folder)
    for path in folder.iterdir():
        if _TENSOR_FILES.fullmatch(path.name) and path.name not in used:
            path.unlink()
