"""Graft, strip, attach and compose: insertions added to a base and taken off again.

Each writes its output folder whole or not at all, and leaves the base's files byte-identical. There
is no torch here: tensors are read and written one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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
from otter_cli.graft.manifest import (
    BaseRecord,
    FileRecord,
    InsertedRecord,
    Manifest,
    TrainingRecord,
)
from otter_cli.graft.plan import Plan
from otter_cli.graft.storage import inserted_files, open_inserted_tensors, write_inserted_tensors


def place_base(
    root: Path,
    files: Iterable[str],
    target: Path,
    *,
    mode: PlacementMode,
    digest: DigestFunction | None = None,
) -> dict[str, FileRecord]:
    """See place_files; tells how far it is, since hashing a large base takes a while."""
    files = list(files)
    total = sum((root / file).stat().st_size for file in files)
    label = "copying the base" if mode == "copy" else "digests of the base"
    with progress(total, label) as advance:
        placed = place_files(root, files, target, mode=mode, advance=advance, digest=digest)
    return {name: FileRecord.model_validate(record) for name, record in placed.items()}


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
    """Writes OUT whole or not at all: the base's files, otter.safetensors and otter.json. Raises
    OtterError. `checked`: the base has passed `check_base` already."""
    # With numpy, for which a plan's price alone should not wait.
    from otter_cli.graft.plan import initial_value

    if not checked:
        check_base(base, plan.shape)
    slots = {slot.name: slot for slot in plan.slots}
    with staged_folder(out, sources=[base.path]) as staging:
        files = place_base(base.path, base.files, staging, mode=mode)
        with progress(plan.parameters, "inserted parameters") as advance:

            def produce(name: str) -> Array:
                advance(slots[name].count)
                return initial_value(slots[name], plan, base)

            stored = write_inserted_tensors(
                staging, [plan], produce, max_shard_bytes=max_shard_bytes
            )
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


def strip(folder: Path, to: Path, *, mode: PlacementMode = "link") -> dict[str, FileRecord]:
    """Gives the base back: exactly the files that otter.json records, each read and compared with
    its digest. Raises OtterError."""
    recorded = Manifest.read(folder).base.files
    for name, record in recorded.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != record.bytes:
            raise _changed_base_error(path)
    with staged_folder(to, sources=[folder]) as staging:
        # Digests are taken anew: one that is remembered would not notice a forged time.
        placed = place_base(folder, list(recorded), staging, mode=mode, digest=sha256_file)
        for name, record in placed.items():
            if record != recorded[name]:
                raise _changed_base_error(folder / name)
    return placed


def _changed_base_error(path: Path) -> OtterError:
    return OtterError(
        f"{path} is {'changed' if path.is_file() else 'missing'} since it was grafted",
        hint="the base can't be given back byte for byte; restore the file first",
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
    """Writes OUT whole or not at all: the adapter beside its base. Raises OtterError where weights
    or configuration are not by their digests those that it was made for; what else lies in the
    base, a README say, may have changed since."""
    manifest = Manifest.read(adapter)
    shape = base_shape(base.config)
    _check_base_sizes(base, manifest.base)
    check_base(base, shape)
    with staged_folder(out, sources=[adapter, base.path]) as staging:
        place_files(adapter, inserted_files(adapter), staging, mode="copy")
        manifest.check_tensors(staging)
        open_inserted_tensors(staging, [Plan(config, shape) for config in manifest.insertions])
        files = place_base(base.path, base.files, staging, mode=mode)
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


def _check_base_sizes(base: Checkpoint, wanted: BaseRecord) -> None:
    """What can be told without reading gigabytes."""
    for name, record in wanted.identity().items():
        path = base.path / name
        if name not in base.files:
            raise _wrong_base_error(path, "it is missing", wanted)
        if path.stat().st_size != record.bytes:
            raise _wrong_base_error(path, "its size differs", wanted)
    for name in base.files:
        if name.endswith(".safetensors") and name not in wanted.files:
            raise _wrong_base_error(base.path / name, "the base had no such file", wanted)


def _wrong_base_error(path: Path, why: str, wanted: BaseRecord) -> OtterError:
    origin = wanted.source + (f"@{wanted.revision}" if wanted.revision else "")
    return OtterError(
        f"{path} is not the base of this adapter: {why}", hint=f"it was made for {origin}"
    )


@dataclass(frozen=True)
class InsertionPart:
    """An insertion, where its tensors come from, and what is known of its signals."""

    plan: Plan
    produce: Callable[[str], Array]
    training: dict[str, TrainingRecord] = field(default_factory=dict)


def graft_onto(
    folder: Path, out: Path, plan: Plan, *, mode: PlacementMode = "link", checked: bool = False
) -> Manifest:
    """Writes OUT: a grafted folder's base and insertions, and one more. Raises OtterError.
    `checked`: the base has passed `check_base` already."""
    from otter_cli.graft.plan import initial_value

    manifest, base = Manifest.read(folder), Checkpoint.open(folder)
    if not checked:
        check_base(base, plan.shape)
    slots = {slot.name: slot for slot in plan.slots}
    new = InsertionPart(plan, lambda name: initial_value(slots[name], plan, base))
    return _write_joined(folder, out, manifest, [*_insertion_parts(folder, manifest), new], mode)


def compose(one: Path, other: Path, to: Path, *, mode: PlacementMode = "link") -> Manifest:
    """Writes TO: the insertions of both, on the base that they share. One of `other` whose name is
    taken is called after its folder. Raises OtterError for different bases and equal signals."""
    manifest, second = Manifest.read(one), Manifest.read(other)
    if manifest.base.identity() != second.base.identity():
        raise OtterError(
            f"{one} and {other} are grafts of different bases: "
            f"{manifest.base.source} and {second.base.source}",
            hint="both have to be of the same weights and configuration, byte for byte",
        )
    base = Checkpoint.open(one)
    check_base(base, base_shape(base.config))
    parts = _insertion_parts(one, manifest)
    for part in _insertion_parts(other, second):
        taken = {p.plan.config.name for p in parts}
        parts.append(_with_name(part, _free_name(part.plan.config.name, other, taken)))
    return _write_joined(one, to, manifest, parts, mode, others=[other])


def _insertion_parts(folder: Path, manifest: Manifest) -> list[InsertionPart]:
    manifest.check_tensors(folder)
    shape = base_shape(Checkpoint.open(folder).config)
    plans = [Plan(config, shape) for config in manifest.insertions]
    tensors = open_inserted_tensors(folder, plans)
    return [
        InsertionPart(
            plan,
            tensors.read,
            {s.name: r for s in plan.config.signals if (r := manifest.training.get(s.name))},
        )
        for plan in plans
    ]


def _free_name(name: str, folder: Path, taken: set[str]) -> str:
    wanted = [name, "".join(c if c.isalnum() else "-" for c in folder.resolve().name.lower())]
    return next((n for n in wanted if n not in taken), f"{name}-{len(taken) + 1}")


def _with_name(part: InsertionPart, name: str) -> InsertionPart:
    config = part.plan.config
    old, new = f"otter.{config.name}.", f"otter.{name}."
    return replace(
        part,
        plan=Plan(config.model_copy(update={"name": name}), part.plan.shape),
        produce=lambda tensor: part.produce(old + tensor.removeprefix(new)),
    )


def _write_joined(
    folder: Path,
    out: Path,
    manifest: Manifest,
    parts: Sequence[InsertionPart],
    mode: PlacementMode,
    others: Sequence[Path] = (),
) -> Manifest:
    """`folder` gives the base's files, `manifest` their record; `others` give parts."""
    _check_distinct_names(parts)
    sources = {slot.name: part for part in parts for slot in part.plan.slots}
    with staged_folder(out, sources=[folder, *others]) as staging:
        files = place_base(folder, list(manifest.base.files), staging, mode=mode)
        for name, record in manifest.base.files.items():
            if files[name] != record:
                raise OtterError(
                    f"{folder / name} is changed since it was grafted",
                    hint="restore the file, or graft its base again",
                )
        plans = [part.plan for part in parts]
        stored = write_inserted_tensors(staging, plans, lambda name: sources[name].produce(name))
        joined: dict[str, Any] = {
            "insertions": [plan.config for plan in plans],
            "inserted": InsertedRecord(file=stored.entry, sha256=stored.sha256),
            "training": {name: record for part in parts for name, record in part.training.items()},
            "provenance": [*manifest.provenance, provenance()],
        }
        manifest = manifest.model_copy(update=joined)
        manifest.write(staging)
    return manifest


def _check_distinct_names(parts: Sequence[InsertionPart]) -> None:
    insertions = [part.plan.config.name for part in parts]
    signals = [signal.name for part in parts for signal in part.plan.config.signals]
    for what, names, hint in (
        ("insertion", insertions, "give the new one another: --name second"),
        ("signal", signals, "graft it under another name: --signal NAME=KIND"),
    ):
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise OtterError(f"two {what}s would be called {twice[0]!r}", hint=hint)
