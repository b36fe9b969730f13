"""Graft, strip, attach and compose: insertions added to a base and taken off again.

Each writes its output folder whole or not at all, and leaves the base's files byte-identical. There
is no torch here: tensors are read and written one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from otter_cli.checkpoint.dtypes import Array
from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.checkpoint.link_or_copy import DigestFunction, PlacementMode, place_files
from otter_cli.checkpoint.safetensors_writer import MAX_SHARD_BYTES
from otter_cli.core.atomic import staged_folder
from otter_cli.core.console import progress
from otter_cli.core.digests import sha256_file
from otter_cli.core.errors import OtterError
from otter_cli.core.provenance import provenance
from otter_cli.families.shape import base_parameters, base_shape
from otter_cli.graft.base_check import check_base
from otter_cli.graft.manifest import BaseRecord, FileRecord, Manifest, TrainingRecord
from otter_cli.graft.plan import Plan
from otter_cli.graft.storage import inserted_files, open_inserted_tensors, write_inserted_tensors


@dataclass(frozen=True)
class InsertionSource:
    """An insertion to write: its plan, the values of each tensor, and how its signals were
    trained."""

    plan: Plan
    read: Callable[[str], Array]
    training: dict[str, TrainingRecord] = field(default_factory=dict)


def graft(
    base: Checkpoint,
    out: Path,
    plan: Plan,
    *,
    source: str | None = None,
    revision: str | None = None,
    mode: PlacementMode = "link",
    max_shard_bytes: int = MAX_SHARD_BYTES,
    checked: bool = False,
) -> Manifest:
    """Writes OUT whole or not at all: the base's files, otter.safetensors and otter.json.

    `checked`: the base has passed `check_base` already. Raises OtterError.
    """
    if not checked:
        check_base(base, plan.shape)
    with staged_folder(out, sources=[base.path]) as staging:
        files = _place_base(base.path, base.files, staging, mode=mode)
        insertions = [_new_insertion(plan, base)]
        manifest = Manifest(
            base=BaseRecord(
                source=source or base.path.resolve().name,
                revision=revision,
                family=plan.shape.family.model_type,
                parameters=base_parameters(base, plan.shape),
                dtype=base.dtype,
                files=files,
            ),
            **_write_insertions(staging, insertions, max_shard_bytes),
            provenance=[provenance()],
        )
        manifest.write(staging)
    return manifest


def graft_onto(
    folder: Path, out: Path, plan: Plan, *, mode: PlacementMode = "link", checked: bool = False
) -> Manifest:
    """Writes OUT: the base and the insertions of a grafted folder, and one more insertion.

    `checked`: the base has passed `check_base` already. Raises OtterError.
    """
    manifest, base = Manifest.read(folder), Checkpoint.open(folder)
    if not checked:
        check_base(base, plan.shape)
    insertions = [*_stored_insertions(folder, manifest), _new_insertion(plan, base)]
    return _write_joined(folder, out, manifest, insertions, mode)


def compose(first: Path, second: Path, to: Path, *, mode: PlacementMode = "link") -> Manifest:
    """Writes TO: the insertions of both grafts on the base that they share.

    An insertion of `second` whose name is taken is renamed after its folder. Raises OtterError for
    different bases, and for two signals of one name.
    """
    manifest, added = Manifest.read(first), Manifest.read(second)
    if manifest.base.identity() != added.base.identity():
        raise OtterError(
            f"{first} and {second} are grafts of different bases: "
            f"{manifest.base.source} and {added.base.source}",
            hint="both have to be of the same weights and configuration, byte for byte",
        )
    base = Checkpoint.open(first)
    check_base(base, base_shape(base.config))
    insertions = _stored_insertions(first, manifest)
    for insertion in _stored_insertions(second, added):
        taken = {other.plan.config.name for other in insertions}
        name = _unused_name(insertion.plan.config.name, second, taken)
        insertions.append(_with_name(insertion, name))
    return _write_joined(first, to, manifest, insertions, mode, others=[second])


def strip(folder: Path, to: Path, *, mode: PlacementMode = "link") -> dict[str, FileRecord]:
    """Writes the base of a graft to TO: exactly the files that otter.json records, each read and
    compared with its digest. Raises OtterError for a file that is changed or missing."""
    recorded = Manifest.read(folder).base.files
    with staged_folder(to, sources=[folder]) as staging:
        return _place_recorded_base(
            folder,
            recorded,
            staging,
            mode=mode,
            hint="the base can't be given back byte for byte; restore the file first",
            # Digests are taken afresh: a remembered one would not notice a forged time.
            digest=sha256_file,
        )


def attach(
    adapter: Path,
    base: Checkpoint,
    out: Path,
    *,
    source: str,
    revision: str | None = None,
    mode: PlacementMode = "link",
) -> Manifest:
    """Writes OUT whole or not at all: the adapter's insertions beside their base.

    Raises OtterError where weights or configurations differ, by digest, from those that the adapter
    was made for. Other files of the base, such as a README, may differ.
    """
    manifest = Manifest.read(adapter)
    shape = base_shape(base.config)
    _check_base_sizes(base, manifest.base)
    check_base(base, shape)
    with staged_folder(out, sources=[adapter, base.path]) as staging:
        place_files(adapter, inserted_files(adapter), staging, mode="copy")
        manifest.check_tensors(staging)
        open_inserted_tensors(staging, manifest.plans(shape))
        files = _place_base(base.path, base.files, staging, mode=mode)
        for name, record in manifest.base.identity().items():
            if files[name] != record:
                raise _wrong_base_error(base.path / name, "its digest differs", manifest.base)
        origin = {"source": source, "revision": revision, "files": files}
        manifest = manifest.model_copy(
            update={
                "base": manifest.base.model_copy(update=origin),
                "provenance": [*manifest.provenance, provenance()],
            }
        )
        manifest.write(staging)
    return manifest


def _check_base_sizes(base: Checkpoint, recorded: BaseRecord) -> None:
    """Compares what needs no reading of gigabytes: names and sizes."""
    for name, record in recorded.identity().items():
        path = base.path / name
        if name not in base.files:
            raise _wrong_base_error(path, "it is missing", recorded)
        if path.stat().st_size != record.bytes:
            raise _wrong_base_error(path, "its size differs", recorded)
    for name in base.files:
        if name.endswith(".safetensors") and name not in recorded.files:
            raise _wrong_base_error(base.path / name, "the base had no such file", recorded)


def _wrong_base_error(path: Path, why: str, recorded: BaseRecord) -> OtterError:
    origin = recorded.source + (f"@{recorded.revision}" if recorded.revision else "")
    return OtterError(
        f"{path} is not the base of this adapter: {why}", hint=f"it was made for {origin}"
    )


def _place_base(
    root: Path,
    files: Iterable[str],
    target: Path,
    *,
    mode: PlacementMode,
    digest: DigestFunction | None = None,
) -> dict[str, FileRecord]:
    """`place_files` with progress, because hashing a large base takes a while."""
    files = list(files)
    total = sum((root / file).stat().st_size for file in files)
    label = "copying the base" if mode == "copy" else "digests of the base"
    with progress(total, label) as advance:
        placed = place_files(root, files, target, mode=mode, advance=advance, digest=digest)
    return {name: FileRecord.model_validate(record) for name, record in placed.items()}


def _place_recorded_base(
    folder: Path,
    recorded: Mapping[str, FileRecord],
    target: Path,
    *,
    mode: PlacementMode,
    hint: str,
    digest: DigestFunction | None = None,
) -> dict[str, FileRecord]:
    """Places the files of a graft's base. Raises OtterError unless all are as `recorded`."""
    changed = "is changed since it was grafted"
    for name, record in recorded.items():
        path = folder / name
        if not path.is_file():
            raise OtterError(f"{path} is missing since it was grafted", hint=hint)
        if path.stat().st_size != record.bytes:
            raise OtterError(f"{path} {changed}", hint=hint)
    placed = _place_base(folder, recorded, target, mode=mode, digest=digest)
    for name, record in placed.items():
        if record != recorded[name]:
            raise OtterError(f"{folder / name} {changed}", hint=hint)
    return placed


def _new_insertion(plan: Plan, base: Checkpoint) -> InsertionSource:
    # This imports numpy, which a price alone does not need.
    from otter_cli.graft.initial_values import initial_value

    tensors = {tensor.name: tensor for tensor in plan.tensors}
    return InsertionSource(plan, lambda name: initial_value(tensors[name], plan, base))


def _stored_insertions(folder: Path, manifest: Manifest) -> list[InsertionSource]:
    manifest.check_tensors(folder)
    plans = manifest.plans(base_shape(Checkpoint.open(folder).config))
    tensors = open_inserted_tensors(folder, plans)
    return [
        InsertionSource(
            plan,
            tensors.read,
            {s.name: r for s in plan.config.signals if (r := manifest.training.get(s.name))},
        )
        for plan in plans
    ]


def _unused_name(name: str, folder: Path, taken: set[str]) -> str:
    folder_name = "".join(c if c.isalnum() else "-" for c in folder.resolve().name.lower())
    choices = (name, folder_name, f"{name}-{len(taken) + 1}")
    return next((choice for choice in choices if choice not in taken), choices[-1])


def _with_name(insertion: InsertionSource, name: str) -> InsertionSource:
    config = insertion.plan.config
    old, new = f"otter.{config.name}.", f"otter.{name}."
    return replace(
        insertion,
        plan=Plan(config.model_copy(update={"name": name}), insertion.plan.shape),
        read=lambda tensor: insertion.read(old + tensor.removeprefix(new)),
    )


def _write_insertions(
    folder: Path, insertions: Sequence[InsertionSource], max_shard_bytes: int = MAX_SHARD_BYTES
) -> dict[str, Any]:
    """Writes the inserted tensors. Returns the fields of the manifest that describe them."""
    sources = {tensor.name: (i, tensor.count) for i in insertions for tensor in i.plan.tensors}
    with progress(sum(i.plan.parameters for i in insertions), "inserted parameters") as advance:

        def read(name: str) -> Array:
            insertion, count = sources[name]
            advance(count)
            return insertion.read(name)

        inserted = write_inserted_tensors(
            folder, [i.plan for i in insertions], read, max_shard_bytes=max_shard_bytes
        )
    return {
        "insertions": [insertion.plan.config for insertion in insertions],
        "inserted": inserted,
        "training": {name: record for i in insertions for name, record in i.training.items()},
    }


def _write_joined(
    folder: Path,
    out: Path,
    manifest: Manifest,
    insertions: Sequence[InsertionSource],
    mode: PlacementMode,
    others: Sequence[Path] = (),
) -> Manifest:
    """Writes OUT: the base of `folder`, which `manifest` describes, with `insertions`. `others` are
    further folders that the insertions are read from."""
    _check_distinct_names(insertions)
    with staged_folder(out, sources=[folder, *others]) as staging:
        hint = "restore the file, or graft its base again"
        _place_recorded_base(folder, manifest.base.files, staging, mode=mode, hint=hint)
        joined = _write_insertions(staging, insertions)
        joined["provenance"] = [*manifest.provenance, provenance()]
        manifest = manifest.model_copy(update=joined)
        manifest.write(staging)
    return manifest


def _check_distinct_names(insertions: Sequence[InsertionSource]) -> None:
    configs = [insertion.plan.config for insertion in insertions]
    for what, names, hint in (
        ("insertion", [c.name for c in configs], "give the new one another: --name second"),
        (
            "signal",
            [signal.name for config in configs for signal in config.signals],
            "graft it under another name: --signal NAME=KIND",
        ),
    ):
        repeated = [name for name in names if names.count(name) > 1]
        if repeated:
            raise OtterError(f"two {what}s would be called {repeated[0]!r}", hint=hint)
