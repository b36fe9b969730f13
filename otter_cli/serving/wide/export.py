"""Write the wide layout and the modelling file that loads it, then measure its difference.

The layout is mathematically non-disruptive, not bit for bit: a wider product rounds differently,
and an overflow in the inserted part reaches the base's part (0 * inf = nan). See docs/method.md,
"Additive and wide layouts".
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
from otter_cli.serving.layouts import Export, SignalDifference, WideDifference
from otter_cli.serving.wide.plan import WidePlan, WideValues

# The kinds of signals that the modelling file can read.
_SUPPORTED_KINDS = ("value", "classes", "future")
# The batch of random tokens that differences are measured on.
ROWS, TOKENS = 4, 64
# How far a signal may be off, relative to its largest value (or to 1): some tens of roundings,
# because the export stores inserted weights in the base's dtype and sums in another order.
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.1}


def export_wide(folder: Path, to: Path) -> Export:
    """Writes the layout, loads it as stock transformers does, and measures its difference."""
    plan = write_wide(folder, to)
    differences, unmeasured = measure_all_dtypes(folder, to)
    files = sorted(path.relative_to(to).as_posix() for path in to.rglob("*") if path.is_file())
    statement = "mathematically non-disruptive, not bit for bit: wider sums are rounded otherwise"
    if plan.zero_heads:
        statement += f"; zero heads ({plan.zero_heads} a layer) keep the family's ratio of heads"
    if differences and not any(difference.moved for difference in differences):
        statement += "; no logit moved on this batch, which promises nothing for another"
    if not differences:
        return Export(files, "not measured", statement, differences, unmeasured)
    close = all(difference.within_tolerance for difference in differences)
    return Export(files, "close" if close else "different", statement, differences, unmeasured)


def write_wide(folder: Path, to: Path) -> WidePlan:
    """Writes the wide checkpoint, its configuration and the modelling file that loads it. Raises
    OtterError for a family or an insertion that the layout cannot hold."""
    manifest, base = open_graft(folder), Checkpoint.open(folder)
    shape = base_shape(base.config)
    _check_wide(manifest, shape.family)
    plan = Plan(manifest.insertions[0], shape)
    wide = WidePlan(WideValues(base, open_inserted_tensors(folder, [plan]), plan))
    make = {tensor.name: tensor.make for tensor in wide.tensors}
    with staged_folder(to, sources=[folder]) as staging:
        kept = _reusable_files(base)
        place_files(folder, kept, staging)
        _remove_auto_map(staging, kept)
        specs = {tensor.name: TensorSpec(base.dtype, tensor.shape) for tensor in wide.tensors}
        write_sharded(staging, "model", specs, lambda name: make[name](), {"format": "pt"})
        write_json(staging / "config.json", _wide_config(base, wide))
        write_bytes(staging / MODELLING_FILE, modelling_file(shape.family.model_type))
    return wide


def _reusable_files(base: Checkpoint) -> list[str]:
    """Files of the base that fit the wide checkpoint too: tokenizer, templates and the like. None
    is code: trusting otter's modelling file does not mean trusting the base's code."""
    changed = {*base.weight_files, "config.json", MODELLING_FILE}
    left_out = (".index.json", ".py")
    return [
        f
        for f in base.files
        if f not in changed and not f.endswith(left_out) and not f.startswith("custom_generate/")
    ]


def _remove_auto_map(staging: Path, kept: list[str]) -> None:
    """Removes references to the base's code (`auto_map`) from the tokenizer's and other
    configuration files."""
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
        why = ""
        if signal.kind not in _SUPPORTED_KINDS:
            why = f"{', '.join(_SUPPORTED_KINDS)}, not {signal.kind}"
        elif signal.kind == "future" and signal.width != 0:
            why = "heads that guess by themselves (future:N,plain), no cell that follows drafts"
        if why:
            raise OtterError(
                f"the wide layout cannot hold signal {signal.name!r}: its modelling file reads "
                + why,
                hint="the nearest that works: the graft itself, or export --to adapter",
            )


def measure_all_dtypes(graft: Path, wide: Path) -> tuple[list[WideDifference], dict[str, str]]:
    """Differences in fp32 and bf16, and the reason for each dtype that does not fit in memory."""
    import psutil

    parameters = sum(info.count for info in Checkpoint.open(wide).tensors.values())
    measured, unmeasured = [], {}
    for dtype in (torch.float32, torch.bfloat16):
        need, free = parameters * dtype.itemsize, psutil.virtual_memory().available
        if need > free:
            reason = f"needs {bytes_text(need)} of memory, {bytes_text(free)} is free"
            unmeasured[_dtype_name(dtype)] = reason
        else:
            measured.append(measure_difference(graft, wide, dtype))
    return measured, unmeasured


def measure_difference(graft: Path, wide: Path, dtype: torch.dtype) -> WideDifference:
    """Runs the graft, then the export, so that one model is in memory at a time."""
    additive = OtterForCausalLM.from_pretrained(graft, dtype=dtype)
    generator = torch.Generator().manual_seed(derive_seed("wide export"))
    length = min(TOKENS, additive.shape.max_positions)
    tokens = torch.randint(additive.shape.vocab, (ROWS, length), generator=generator)
    with torch.no_grad():
        expected = additive(tokens)
    del additive
    gc.collect()
    tolerance = max(TOLERANCES[dtype], TOLERANCES[stored_dtype(Checkpoint.open(wide))])
    with torch.no_grad():
        actual = load_wide(wide, dtype=dtype)(tokens)
    assert expected.logits is not None
    return compare_outputs(
        expected.logits, actual.logits, expected.signals, actual.signals, tolerance
    )


def compare_outputs(
    logits: Tensor,
    wide_logits: Tensor,
    signals: Mapping[str, Tensor],
    wide_signals: Mapping[str, Tensor],
    tolerance: float,
) -> WideDifference:
    """Compares the outputs of a wide export with the graft's; logits [..., vocab]."""
    return WideDifference(
        dtype=_dtype_name(logits.dtype),
        tokens=logits[..., 0].numel(),
        logits=logits.numel(),
        moved=int((logits != wide_logits).sum()),
        largest=_largest_gap(logits, wide_logits),
        flipped=int((logits.argmax(-1) != wide_logits.argmax(-1)).sum()),
        lost=_count_lost(logits, wide_logits),
        signals={
            name: SignalDifference(
                _largest_gap(signal, wide_signals[name]),
                _largest_gap(signal, torch.zeros_like(signal)),
                tolerance,
                _count_lost(signal, wide_signals[name]),
            )
            for name, signal in signals.items()
        },
    )


def _largest_gap(expected: Tensor, actual: Tensor) -> float:
    """The largest difference where both are finite."""
    gap = (expected.double() - actual.double()).abs()
    return float(gap[gap.isfinite()].max()) if gap.isfinite().any() else 0.0


def _count_lost(expected: Tensor, actual: Tensor) -> int:
    return int((expected.isfinite() & ~actual.isfinite()).sum())


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
