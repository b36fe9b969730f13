"""Several insertions on one base: a second one grafted onto a graft, and two grafts joined.

Each keeps its own tensors and records; none reads another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from otter_cli.checkpoint.dtypes import Array
from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.checkpoint.place import Mode
from otter_cli.core.atomic import staged_folder
from otter_cli.core.errors import OtterError
from otter_cli.core.provenance import provenance
from otter_cli.families import base_shape
from otter_cli.insertion.check import check_base
from otter_cli.insertion.manifest import InsertedRecord, Manifest, TrainingRecord
from otter_cli.insertion.placing import place_base
from otter_cli.insertion.plan import Plan
from otter_cli.insertion.storage import open_stored, write_stored


@dataclass(frozen=True)
class Part:
    """An insertion, where its tensors come from, and what is known of its signals."""

    plan: Plan
    produce: Callable[[str], Array]
    training: dict[str, TrainingRecord] = field(default_factory=dict)


def graft_onto(
    folder: Path, out: Path, plan: Plan, *, mode: Mode = "link", checked: bool = False
) -> Manifest:
    """Writes OUT: a grafted folder's base and insertions, and one more. Raises OtterError.
    `checked`: the base has passed `check_base` already."""
    from otter_cli.insertion.initialise import initial_value

    manifest, base = Manifest.read(folder), Checkpoint.open(folder)
    if not checked:
        check_base(base, plan.shape)
    slots = {slot.name: slot for slot in plan.slots}
    new = Part(plan, lambda name: initial_value(slots[name], plan, base))
    return _join(folder, out, manifest, [*_parts(folder, manifest), new], mode)


def compose(one: Path, other: Path, to: Path, *, mode: Mode = "link") -> Manifest:
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
    parts = _parts(one, manifest)
    for part in _parts(other, second):
        taken = {p.plan.config.name for p in parts}
        parts.append(_renamed(part, _free_name(part.plan.config.name, other, taken)))
    return _join(one, to, manifest, parts, mode, others=[other])


def _parts(folder: Path, manifest: Manifest) -> list[Part]:
    manifest.check_tensors(folder)
    shape = base_shape(Checkpoint.open(folder).config)
    plans = [Plan(config, shape) for config in manifest.insertions]
    tensors = open_stored(folder, plans)
    return [
        Part(
            plan,
            tensors.read,
            {s.name: r for s in plan.config.signals if (r := manifest.training.get(s.name))},
        )
        for plan in plans
    ]


def _free_name(name: str, folder: Path, taken: set[str]) -> str:
    wanted = [name, "".join(c if c.isalnum() else "-" for c in folder.resolve().name.lower())]
    return next((n for n in wanted if n not in taken), f"{name}-{len(taken) + 1}")


def _renamed(part: Part, name: str) -> Part:
    config = part.plan.config
    old, new = f"otter.{config.name}.", f"otter.{name}."
    return replace(
        part,
        plan=Plan(config.model_copy(update={"name": name}), part.plan.shape),
        produce=lambda tensor: part.produce(old + tensor.removeprefix(new)),
    )


def _join(
    folder: Path,
    out: Path,
    manifest: Manifest,
    parts: Sequence[Part],
    mode: Mode,
    others: Sequence[Path] = (),
) -> Manifest:
    """`folder` gives the base's files, `manifest` their record; `others` give parts."""
    _check_names(parts)
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
        stored = write_stored(staging, plans, lambda name: sources[name].produce(name))
        joined: dict[str, Any] = {
            "insertions": [plan.config for plan in plans],
            "inserted": InsertedRecord(file=stored.entry, sha256=stored.sha256),
            "training": {name: record for part in parts for name, record in part.training.items()},
            "provenance": [*manifest.provenance, provenance()],
        }
        manifest = manifest.model_copy(update=joined)
        manifest.write(staging)
    return manifest


def _check_names(parts: Sequence[Part]) -> None:
    insertions = [part.plan.config.name for part in parts]
    signals = [signal.name for part in parts for signal in part.plan.config.signals]
    for what, names, hint in (
        ("insertion", insertions, "give the new one another: --name second"),
        ("signal", signals, "graft it under another name: --signal NAME=KIND"),
    ):
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise OtterError(f"two {what}s would be called {twice[0]!r}", hint=hint)
