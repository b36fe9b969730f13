"""The folder that `vllm serve` loads with the plugin: the base's files as they are, the inserted
tensors beside them, and a configuration that names our classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.checkpoint.place import Mode, place_files
from otter_cli.checkpoint.strict_json import read_object
from otter_cli.core.atomic import staged_folder, write_json
from otter_cli.core.errors import OtterError
from otter_cli.families import BaseShape, base_shape
from otter_cli.insertion import MANIFEST, InsertionConfig, Manifest, Plan
from otter_cli.insertion.opened import open_graft
from otter_cli.insertion.storage import open_stored, stored_files
from otter_cli.serving.layouts import Export
from otter_cli.serving.vllm.drafter import FILES, FOLDER, Drafter
from otter_cli.serving.vllm.plugin import STOCK, grafted

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
# vLLM 0.32's own list for its CPU attention; a GPU's kernels have others.
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)


def export_vllm(folder: Path, to: Path, *, draft: str | None = None, mode: Mode = "link") -> Export:
    """Writes the folder whole or not at all, reads it again, and says what an engine does with it;
    `draft`: the future signal that becomes its drafter.

    Raises OtterError for families, insertions and drafters that the plugin does not run.
    """
    manifest, base = open_graft(folder), Checkpoint.open(folder)
    shape = base_shape(base.config)
    _check(shape)
    plans = [Plan(config, shape) for config in manifest.insertions]
    inserted = open_stored(folder, plans)
    drafter = None if draft is None else Drafter.of(base, inserted, plans, draft)
    kept = [name for name in base.files if name not in (CONFIG, INDEX)]
    files = [*kept, *stored_files(folder), MANIFEST]
    with staged_folder(to, sources=[folder]) as staging:
        place_files(folder, files, staging, mode=mode)
        write_json(staging / CONFIG, _config(base, manifest))
        # vLLM reads only what an index names, where there is one.
        placed = {**base.file_of, **inserted.file_of}
        write_json(staging / INDEX, {"metadata": {}, "weight_map": placed})
        if drafter is not None:
            drafter.write(staging / FOLDER)
        _read_again(staging, base, plans)
    count = sum(len(plan.slots) for plan in plans)
    drafts = [] if drafter is None else [f"{FOLDER}/{name}" for name in FILES]
    notes = _notes(manifest, shape)
    if drafter is not None:
        notes.append(f"{FOLDER} drafts {len(drafter.heads)} tokens a step, in Medusa's format")
    return Export(
        sorted([*files, *drafts, CONFIG, INDEX]),
        "exact",
        f"{len(base.tensors)} tensors of the base and {count} inserted ones, byte for byte; "
        + "; ".join(notes),
    )


def _config(base: Checkpoint, manifest: Manifest) -> dict[str, Any]:
    return {
        **base.config,
        "architectures": [grafted(manifest.base.family)],
        "otter": {"insertions": [one.model_dump(mode="json") for one in manifest.insertions]},
    }


def _check(shape: BaseShape) -> None:
    family = shape.family.model_type
    if family not in STOCK:
        raise OtterError(
            f"the vLLM plugin has no class for {family}",
            hint=f"it has for {', '.join(STOCK)}; transformers runs every family",
        )
    if shape.activation != "silu":
        raise OtterError(
            f"vLLM runs {family} with silu alone, this base has {shape.activation}",
            hint="serve it with transformers",
        )


def _read_again(staging: Path, base: Checkpoint, plans: list[Plan]) -> None:
    Manifest.read(staging).check_tensors(staging)
    open_stored(staging, plans)
    written, mine = read_object(staging / CONFIG), ("architectures", "otter")
    if any(written.get(key) != value for key, value in base.config.items() if key not in mine):
        raise OtterError(
            f"{staging / CONFIG} reads otherwise than it was written",
            hint="the disk or its memory fails: try another one",
        )


def _notes(manifest: Manifest, shape: BaseShape) -> list[str]:
    notes = []
    for config in manifest.insertions:
        if zero := zero_heads(config, shape):
            notes.append(
                f"{zero} zero heads a layer fill up {config.name!r} on GPUs, where an engine gives "
                "every key/value head the same number of query heads"
            )
    if any(one.kv == "own" and one.heads for one in manifest.insertions):
        notes.append("own keys and values take a KV cache of their own")
    if shape.head_dim not in CPU_HEAD_SIZES:
        notes.append(f"vLLM's CPU attention has no head size {shape.head_dim}: GPUs only")
    return notes or ["no zero heads are needed"]


def zero_heads(config: InsertionConfig, shape: BaseShape) -> int:
    """How many query heads of a layer do nothing, so that those of the base's keys group evenly."""
    if not config.heads or config.kv == "own":
        return 0
    return config.heads // config.kv_heads * shape.kv_heads - config.heads
