"""The wide layout: mathematically non-disruptive, and readable by engines that know no insertion.

Not bit for bit: a wider product rounds differently, and an overflow in the inserted part reaches
the base's (0 * inf = nan). METHOD, 2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.checkpoint.place import place_files
from otter_cli.checkpoint.strict_json import read_object
from otter_cli.checkpoint.writer import TensorSpec, write_sharded
from otter_cli.core.atomic import staged_folder, write_bytes, write_json
from otter_cli.core.errors import OtterError
from otter_cli.families import Family, base_shape
from otter_cli.families.wide import WIDE, why_not_wide
from otter_cli.insertion import Manifest, Plan
from otter_cli.insertion.opened import open_graft
from otter_cli.insertion.storage import open_stored
from otter_cli.model.wide import AUTO_MAP, MODELLING, modelling_file
from otter_cli.serving.layouts import Export, Word
from otter_cli.serving.wide_plan import WidePlan
from otter_cli.serving.wide_values import WideValues

# What the modelling file knows how to read.
_KINDS = ("value", "classes", "future")


def export_wide(folder: Path, to: Path) -> Export:
    """Writes the layout, loads it as stock transformers does, and measures how far it is off."""
    plan = write_wide(folder, to)
    from otter_cli.serving.difference import measure_all

    differences, unmeasured = measure_all(folder, to)
    files = sorted(path.relative_to(to).as_posix() for path in to.rglob("*") if path.is_file())
    statement = "mathematically non-disruptive, not bit for bit: wider sums are rounded otherwise"
    if plan.zero_heads:
        statement += f"; zero heads ({plan.zero_heads} a layer) keep the family's ratio of heads"
    if differences and not any(difference.moved for difference in differences):
        statement += "; no logit moved on this batch, which promises nothing for another"
    within = all(difference.within for difference in differences)
    verdict: Word = ("close" if within else "different") if differences else "not measured"
    return Export(files, verdict, statement, differences, unmeasured)


def write_wide(folder: Path, to: Path) -> WidePlan:
    """Writes the wide checkpoint, its configuration and the modelling file that loads it.

    Raises OtterError for a family or an insertion that the layout cannot hold.
    """
    manifest, base = open_graft(folder), Checkpoint.open(folder)
    shape = base_shape(base.config)
    _check(manifest, shape.family)
    plan = Plan(manifest.insertions[0], shape)
    wide = WidePlan(WideValues(base, open_stored(folder, [plan]), plan))
    make = {slot.name: slot.make for slot in wide.slots}
    with staged_folder(to, sources=[folder]) as staging:
        kept = _kept(base)
        place_files(folder, kept, staging)
        _forget_code(staging, kept)
        specs = {slot.name: TensorSpec(base.dtype, slot.shape) for slot in wide.slots}
        write_sharded(staging, "model", specs, lambda name: make[name](), {"format": "pt"})
        write_json(staging / "config.json", _config(base, wide))
        write_bytes(staging / MODELLING, modelling_file(shape.family.model_type))
    return wide


def _kept(base: Checkpoint) -> list[str]:
    """Files of the base that hold for the wide checkpoint too: tokenizer, templates, and such. None
    is code: who trusts otter's modelling file has not agreed to run the base's."""
    changed = {*base.weight_files, "config.json", MODELLING}
    left_out = (".index.json", ".py")
    return [
        f
        for f in base.files
        if f not in changed and not f.endswith(left_out) and not f.startswith("custom_generate/")
    ]


def _forget_code(staging: Path, kept: list[str]) -> None:
    """Takes the names of classes that are code (`auto_map`) out of the tokenizer's configuration
    and its like."""
    for name in kept:
        if "/" not in name and name.endswith("_config.json"):
            settings = read_object(staging / name)
            if settings.pop("auto_map", None) is not None:
                write_json(staging / name, settings)


def _config(base: Checkpoint, wide: WidePlan) -> dict[str, Any]:
    config, shape = wide.plan.config, wide.plan.shape
    return {
        **base.config,
        "model_type": f"otter_wide_{shape.family.model_type}",
        "architectures": ["OtterWideForCausalLM"],
        "auto_map": AUTO_MAP,
        "hidden_size": wide.width,
        "head_dim": shape.head_dim,
        "num_attention_heads": wide.heads,
        "num_key_value_heads": wide.kv_heads,
        "intermediate_size": wide.ffn,
        "tie_word_embeddings": False,
        "otter_base_hidden": shape.hidden,
        "otter_norm": config.norm,
        "otter_signals": [signal.model_dump(mode="json") for signal in config.signals],
    }


def _check(manifest: Manifest, family: Family) -> None:
    if why := why_not_wide(family):
        raise OtterError(
            f"the wide layout cannot hold {family.model_type}: {why}",
            hint="the nearest that works: the graft itself, or export --to adapter; wide is for "
            + ", ".join(WIDE),
        )
    if len(manifest.insertions) != 1 or not manifest.insertions[0].hidden:
        raise OtterError(
            "the wide layout holds exactly one insertion with hidden units",
            hint="export --to adapter keeps any number of insertions",
        )
    for signal in manifest.insertions[0].signals:
        why = f"{', '.join(_KINDS)}, not {signal.kind}" if signal.kind not in _KINDS else ""
        if signal.kind == "future" and signal.width != 0:
            why = "heads that guess by themselves (future:N,plain), no cell that follows drafts"
        if why:
            raise OtterError(
                f"the wide layout cannot hold signal {signal.name!r}: its modelling file reads "
                + why,
                hint="the nearest that works: the graft itself, or export --to adapter",
            )
