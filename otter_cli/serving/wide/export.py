"""Write the wide layout and the modelling file that loads it, then measure its difference.

The layout is mathematically non-disruptive, not bit for bit: a wider product rounds differently,
and an overflow in the inserted part reaches the base's part (0 * inf = nan).
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.checkpoint.link_or_copy import place_files
from otter_cli.checkpoint.safetensors_writer import TensorSpec, write_sharded
from otter_cli.core.atomic import staged_folder, write_bytes, write_json
from otter_cli.core.errors import OtterError
from otter_cli.core.formatting import bytes_text
from otter_cli.core.process import derive_seed
from otter_cli.core.strict_files import read_json_object
from otter_cli.families.family import Family
from otter_cli.families.registry import WIDE_CLASS_NAMES, wide_layout_refusal
from otter_cli.families.shape import base_shape
from otter_cli.graft.grafted_folder import open_graft
from otter_cli.graft.manifest import Manifest
from otter_cli.graft.plan import Plan
from otter_cli.graft.storage import open_inserted_tensors
from otter_cli.model.load import stored_dtype
from otter_cli.model.otter import OtterForCausalLM
from otter_cli.model.wide import AUTO_MAP, MODELLING_FILE, load_wide, modelling_file
from otter_cli.serving.layouts import Export, ExportVerdict, SignalDifference, WideDifference
from otter_cli.serving.wide.plan import WidePlan, WideValues

ROWS, TOKENS = 4, 64
# How far a signal may be off, in units of its largest value (or of one): some tens of roundings,
# for inserted weights are stored in the base's dtype there, and sums run in another order.
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.1}


def measure_all_dtypes(graft: Path, wide: Path) -> tuple[list[WideDifference], dict[str, str]]:
    """In fp32 and in bf16, and the reason where this machine has no memory for one of them."""
    import psutil

    parameters = sum(info.count for info in Checkpoint.open(wide).tensors.values())
    measured, skipped = [], {}
    for dtype in (torch.float32, torch.bfloat16):
        need, free = parameters * dtype.itemsize, psutil.virtual_memory().available
        if need > free:
            skipped[_dtype_name(dtype)] = (
                f"needs {bytes_text(need)} of memory, {bytes_text(free)} is free"
            )
        else:
            measured.append(measure_difference(graft, wide, dtype))
    return measured, skipped


def measure_difference(graft: Path, wide: Path, dtype: torch.dtype) -> WideDifference:
    """Runs the graft, then the export: one model is in memory at a time."""
    additive = OtterForCausalLM.from_pretrained(graft, dtype=dtype)
    tokens = _random_tokens(additive)
    with torch.no_grad():
        expected = additive(tokens)
    del additive
    gc.collect()
    stored = stored_dtype(Checkpoint.open(wide))
    tolerance = max(TOLERANCES[dtype], TOLERANCES[stored])
    with torch.no_grad():
        got = load_wide(wide, dtype=dtype)(tokens)
    assert expected.logits is not None
    return compare_outputs(expected.logits, got.logits, expected.signals, got.signals, tolerance)


def compare_outputs(
    logits: Tensor,
    others: Tensor,
    signals: Mapping[str, Tensor],
    other_signals: Mapping[str, Tensor],
    tolerance: float,
) -> WideDifference:
    """The export's outputs (second and fourth) against the graft's; logits [..., vocab]."""
    return WideDifference(
        dtype=_dtype_name(logits.dtype),
        tokens=logits[..., 0].numel(),
        logits=logits.numel(),
        moved=int((logits != others).sum()),
        largest=_largest_gap(logits, others),
        flipped=int((logits.argmax(-1) != others.argmax(-1)).sum()),
        lost=_count_lost(logits, others),
        signals={
            name: SignalDifference(
                _largest_gap(signal, other_signals[name]),
                _largest_gap(signal, torch.zeros_like(signal)),
                tolerance,
                _count_lost(signal, other_signals[name]),
            )
            for name, signal in signals.items()
        },
    )


def _largest_gap(one: Tensor, other: Tensor) -> float:
    """Over what is a number in both."""
    gap = (one.double() - other.double()).abs()
    return float(gap[gap.isfinite()].max()) if gap.isfinite().any() else 0.0


def _count_lost(one: Tensor, other: Tensor) -> int:
    return int((one.isfinite() & ~other.isfinite()).sum())


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _random_tokens(model: OtterForCausalLM) -> Tensor:
    generator = torch.Generator().manual_seed(derive_seed("wide export"))
    length = min(TOKENS, model.shape.max_positions)
    return torch.randint(model.shape.vocab, (ROWS, length), generator=generator)


# What the modelling file knows how to read.
_SUPPORTED_KINDS = ("value", "classes", "future")


def export_wide(folder: Path, to: Path) -> Export:
    """Writes the layout, loads it as stock transformers does, and measures how far it is off."""
    plan = write_wide(folder, to)

    differences, unmeasured = measure_all_dtypes(folder, to)
    files = sorted(path.relative_to(to).as_posix() for path in to.rglob("*") if path.is_file())
    statement = "mathematically non-disruptive, not bit for bit: wider sums are rounded otherwise"
    if plan.zero_heads:
        statement += f"; zero heads ({plan.zero_heads} a layer) keep the family's ratio of heads"
    if differences and not any(difference.moved for difference in differences):
        statement += "; no logit moved on this batch, which promises nothing for another"
    within = all(difference.within for difference in differences)
    verdict: ExportVerdict = ("close" if within else "different") if differences else "not measured"
    return Export(files, verdict, statement, differences, unmeasured)


def write_wide(folder: Path, to: Path) -> WidePlan:
    """Writes the wide checkpoint, its configuration and the modelling file that loads it.

    Raises OtterError for a family or an insertion that the layout cannot hold.
    """
    manifest, base = open_graft(folder), Checkpoint.open(folder)
    shape = base_shape(base.config)
    _check_wide(manifest, shape.family)
    plan = Plan(manifest.insertions[0], shape)
    wide = WidePlan(WideValues(base, open_inserted_tensors(folder, [plan]), plan))
    make = {slot.name: slot.make for slot in wide.slots}
    with staged_folder(to, sources=[folder]) as staging:
        kept = _reusable_files(base)
        place_files(folder, kept, staging)
        _remove_auto_map(staging, kept)
        specs = {slot.name: TensorSpec(base.dtype, slot.shape) for slot in wide.slots}
        write_sharded(staging, "model", specs, lambda name: make[name](), {"format": "pt"})
        write_json(staging / "config.json", _wide_config(base, wide))
        write_bytes(staging / MODELLING_FILE, modelling_file(shape.family.model_type))
    return wide


def _reusable_files(base: Checkpoint) -> list[str]:
    """Files of the base that hold for the wide checkpoint too: tokenizer, templates, and such. None
    is code: who trusts otter's modelling file has not agreed to run the base's."""
    changed = {*base.weight_files, "config.json", MODELLING_FILE}
    left_out = (".index.json", ".py")
    return [
        f
        for f in base.files
        if f not in changed and not f.endswith(left_out) and not f.startswith("custom_generate/")
    ]


def _remove_auto_map(staging: Path, kept: list[str]) -> None:
    """Takes the names of classes that are code (`auto_map`) out of the tokenizer's configuration
    and its like."""
    for name in kept:
        if "/" not in name and name.endswith("_config.json"):
            settings = read_json_object(staging / name)
            if settings.pop("auto_map", None) is not None:
                write_json(staging / name, settings)


def _wide_config(base: Checkpoint, wide: WidePlan) -> dict[str, Any]:
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


def _check_wide(manifest: Manifest, family: Family) -> None:
    if why := wide_layout_refusal(family):
        raise OtterError(
            f"the wide layout cannot hold {family.model_type}: {why}",
            hint="the nearest that works: the graft itself, or export --to adapter; wide is for "
            + ", ".join(WIDE_CLASS_NAMES),
        )
    if len(manifest.insertions) != 1 or not manifest.insertions[0].hidden:
        raise OtterError(
            "the wide layout holds exactly one insertion with hidden units",
            hint="export --to adapter keeps any number of insertions",
        )
    for signal in manifest.insertions[0].signals:
        why = (
            f"{', '.join(_SUPPORTED_KINDS)}, not {signal.kind}"
            if signal.kind not in _SUPPORTED_KINDS
            else ""
        )
        if signal.kind == "future" and signal.width != 0:
            why = "heads that guess by themselves (future:N,plain), no cell that follows drafts"
        if why:
            raise OtterError(
                f"the wide layout cannot hold signal {signal.name!r}: its modelling file reads "
                + why,
                hint="the nearest that works: the graft itself, or export --to adapter",
            )
