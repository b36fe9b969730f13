"""Write the folder that `vllm serve` loads with the plugin.

It holds the base's files as they are, the inserted tensors beside them, and a configuration that
names our model classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from otter_cli.checkpoint.folder import MANIFEST, Checkpoint
from otter_cli.checkpoint.link_or_copy import PlacementMode, place_files
from otter_cli.core.atomic import staged_folder, write_json
from otter_cli.core.errors import OtterError
from otter_cli.core.strict_files import read_json_object
from otter_cli.families.shape import BaseShape, base_shape
from otter_cli.graft.config import InsertionConfig
from otter_cli.graft.grafted_folder import open_graft
from otter_cli.graft.manifest import Manifest
from otter_cli.graft.plan import Plan
from otter_cli.graft.storage import inserted_files, open_inserted_tensors
from otter_cli.serving.layouts import Export, reads_otherwise
from otter_cli.serving.vllm.engine_checks import CONFIG, INDEX
from otter_cli.serving.vllm.medusa_drafter import DRAFTER_FILES, DRAFTER_FOLDER, MedusaDrafter
from otter_cli.serving.vllm.plugin import STOCK_ARCHITECTURES, grafted_architecture

# The head sizes of vLLM 0.32's CPU attention; a GPU's kernels have others.
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)


def export_vllm(
    folder: Path, to: Path, *, draft: str | None = None, mode: PlacementMode = "link"
) -> Export:
    """Writes the folder whole or not at all, reads it again, and reports how an engine runs it.
    `draft` is the future signal that becomes the engine's drafter. Raises OtterError for families,
    insertions and drafters that the plugin does not run."""
    manifest, base = open_graft(folder), Checkpoint.open(folder)
    shape = base_shape(base.config)
    _check_family(shape)
    plans = manifest.plans(shape)
    inserted = open_inserted_tensors(folder, plans)
    drafter = None if draft is None else MedusaDrafter.of(base, inserted, plans, draft)
    kept = [name for name in base.files if name not in (CONFIG, INDEX)]
    files = [*kept, *inserted_files(folder), MANIFEST]
    notes, drafts = _notes(manifest, shape), list[str]()
    with staged_folder(to, sources=[folder]) as staging:
        place_files(folder, files, staging, mode=mode)
        write_json(staging / CONFIG, _vllm_config(base, manifest))
        # Where there is an index, vLLM reads only the files that it names.
        weight_map = {**base.file_of, **inserted.file_of}
        write_json(staging / INDEX, {"metadata": {}, "weight_map": weight_map})
        if drafter is not None:
            drafter.write(staging / DRAFTER_FOLDER)
            drafts = [f"{DRAFTER_FOLDER}/{name}" for name in DRAFTER_FILES]
            notes.append(
                f"{DRAFTER_FOLDER} drafts {len(drafter.heads)} tokens a step, in Medusa's format"
            )
        _read_again(staging, base, plans)
    count = sum(len(plan.tensors) for plan in plans)
    return Export(
        sorted([*files, *drafts, CONFIG, INDEX]),
        "exact",
        f"{len(base.tensors)} tensors of the base and {count} inserted ones, byte for byte; "
        + "; ".join(notes),
    )


def _vllm_config(base: Checkpoint, manifest: Manifest) -> dict[str, Any]:
    return {
        **base.config,
        "architectures": [grafted_architecture(manifest.base.family)],
        "otter": {"insertions": [config.model_dump(mode="json") for config in manifest.insertions]},
    }


def _check_family(shape: BaseShape) -> None:
    family = shape.family.model_type
    if family not in STOCK_ARCHITECTURES:
        raise OtterError(
            f"the vLLM plugin has no class for {family}",
            hint=f"it has for {', '.join(STOCK_ARCHITECTURES)}; transformers runs every family",
        )
    if shape.activation != "silu":
        raise OtterError(
            f"vLLM runs {family} with silu alone, this base has {shape.activation}",
            hint="serve it with transformers",
        )


def _read_again(staging: Path, base: Checkpoint, plans: list[Plan]) -> None:
    Manifest.read(staging).check_tensors(staging)
    open_inserted_tensors(staging, plans)
    written, own = read_json_object(staging / CONFIG), ("architectures", "otter")
    if any(written.get(key) != value for key, value in base.config.items() if key not in own):
        raise reads_otherwise(staging / CONFIG)


def _notes(manifest: Manifest, shape: BaseShape) -> list[str]:
    notes = []
    for config in manifest.insertions:
        if zero := zero_heads(config, shape):
            notes.append(
                f"{zero} zero heads a layer fill up {config.name!r} on GPUs, where an engine gives "
                "every key/value head the same number of query heads"
            )
    if any(config.kv == "own" and config.heads for config in manifest.insertions):
        notes.append("own keys and values take a KV cache of their own")
    if shape.head_dim not in CPU_HEAD_SIZES:
        notes.append(f"vLLM's CPU attention has no head size {shape.head_dim}: GPUs only")
    return notes or ["no zero heads are needed"]


def zero_heads(config: InsertionConfig, shape: BaseShape) -> int:
    """How many zero query heads a layer needs, so that every key/value head of the base has the
    same number of query heads."""
    if not config.heads or config.kv == "own":
        return 0
    return config.heads // config.kv_heads * shape.kv_heads - config.heads
