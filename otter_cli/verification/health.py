"""The health of a folder on disk: a base, a graft or an adapter.

Imports no torch, unless the files alone do not settle whether the base can run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from otter_cli.checkpoint.dtypes import FLOAT_DTYPES, count_non_finite
from otter_cli.checkpoint.folder import MANIFEST, Checkpoint, refuse_gguf
from otter_cli.checkpoint.safetensors_reader import ShardedTensors
from otter_cli.core.console import progress
from otter_cli.core.errors import OtterError
from otter_cli.families.config_checks import quantisation_error
from otter_cli.families.registry import FAMILIES
from otter_cli.families.shape import base_shape
from otter_cli.graft.base_check import inspect_base
from otter_cli.graft.manifest import Manifest
from otter_cli.graft.storage import FILE_STEM
from otter_cli.verification.static import Finding, check_graft

FolderKind = Literal["base", "graft", "adapter"]
_DTYPE_CODES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}
# For each dtype, the dtypes whose values it holds without rounding or overflow.
_REPRESENTS = {"F64": {"F32", "F16", "BF16"}, "F32": {"F16", "BF16"}}


@dataclass
class Health:
    """`problems` make the folder unfit for use, `notes` do not.

    Counts: `digests` of files compared with otter.json's, `tensors`, `shapes` compared with
    config.json, `values` examined, and `dtypes`, values by dtype.
    """

    path: Path
    kind: FolderKind
    digests: int = 0
    tensors: int = 0
    shapes: int = 0
    values: int = 0
    tied: bool | None = None
    dtypes: dict[str, int] = field(default_factory=dict)
    problems: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        return not self.problems


def check_health(folder: Path) -> Health:
    """Examines every byte of `folder`. Raises OtterError for what is no checkpoint at all."""
    refuse_gguf(folder)
    if not folder.is_dir():
        raise OtterError(f"{folder} is not a folder", hint="give the folder of a checkpoint")
    has_manifest, has_base = ((folder / name).exists() for name in (MANIFEST, "config.json"))
    if not has_manifest and not has_base:
        raise OtterError(
            f"{folder} is no checkpoint: it holds neither config.json nor {MANIFEST}",
            hint="give the folder of a base, a graft or an adapter",
        )
    kind: FolderKind = "base" if not has_manifest else "graft" if has_base else "adapter"
    health = Health(folder, kind)
    checks = [_check_base] * has_base + [_check_digests, _check_inserted] * has_manifest
    for check in checks:
        try:
            check(folder, health)
        except OtterError as error:
            # An error ends one check and is its finding. The other checks go on.
            health.problems.append(Finding(error.what, str(folder)))
    return health


def _check_base(folder: Path, health: Health) -> None:
    base = Checkpoint.open(folder)
    health.tensors += len(base.tensors)
    _check_dtype(base, health)
    family = base.config.get("model_type")
    if isinstance(family, str) and family in FAMILIES:
        shape = base_shape(base.config)
        health.tied = shape.tied
        inspection = inspect_base(base, shape)
        health.shapes = inspection.shapes
        for tensor, what, _ in inspection.problems:
            file = base.file_of.get(tensor, "")
            health.problems.append(Finding(what, str(base.path / file), tensor or None))
        health.notes += inspection.warnings
    elif isinstance(family, str):
        if quantised := quantisation_error(base.config):
            health.problems.append(Finding(quantised[0], str(folder)))
        health.notes.append(
            f"shapes were not compared: family {family!r} is not described, and graft refuses it"
        )
    else:
        health.problems.append(Finding("names no model_type", str(base.path / "config.json")))
    health.problems += _check_values(base.weights, folder, health)


def _check_dtype(base: Checkpoint, health: Health) -> None:
    """Compares the dtype that config.json names with that of most tensors."""
    named, stored = base.config.get("dtype", base.config.get("torch_dtype")), base.dtype
    loaded = _DTYPE_CODES.get(str(named), stored)
    if loaded == stored or stored not in FLOAT_DTYPES:
        return
    what = f"says {named}, most of the tensors are {stored}"
    if stored in _REPRESENTS.get(loaded, set()):
        health.notes.append(f"config.json {what}: transformers would take more memory")
    else:
        file = str(base.path / "config.json")
        health.problems.append(Finding(f"{what}: transformers would round them", file))


def _check_values(weights: ShardedTensors, folder: Path, health: Health) -> Iterator[Finding]:
    total = sum(info.nbytes for info in weights.tensors.values())
    with progress(total, "looking for NaN") as advance:
        for name, info in weights.tensors.items():
            nan, infinite = count_non_finite(weights.read_raw(name), info.dtype)
            health.values += info.count
            health.dtypes[info.dtype] = health.dtypes.get(info.dtype, 0) + info.count
            if nan or infinite:
                what = f"holds {nan:,} NaN and {infinite:,} infinite of {info.count:,} values"
                yield Finding(what, str(folder / weights.file_of[name]), name)
            advance(info.nbytes)


def _check_digests(folder: Path, health: Health) -> None:
    """Compares files with the digests in otter.json. An adapter has inserted tensors only."""
    if health.kind == "graft":
        static = check_graft(folder, None)
        health.digests = static.files + 1
        health.problems += static.findings
        health.notes += static.notes
    else:
        Manifest.read(folder).check_tensors(folder)
        health.digests = 1


def _check_inserted(folder: Path, health: Health) -> None:
    weights = ShardedTensors.open(folder, FILE_STEM)
    health.tensors += len(weights.tensors)
    health.problems += _check_values(weights, folder, health)
