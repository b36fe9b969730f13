"""`otter inspect`: shows what a folder holds, what was grafted onto it, and what can be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from otter_cli.cli.command import Outcome, verb, verb_app
from otter_cli.cli.tables import facts_table

if TYPE_CHECKING:
    from otter_cli.checkpoint.folder import Checkpoint
    from otter_cli.families.shape import BaseShape
    from otter_cli.graft.config import InsertionConfig
    from otter_cli.graft.manifest import Manifest


app = verb_app()


@verb(app, example="otter inspect grafted\notter inspect --families")
def inspect(
    path: Annotated[
        Path | None, typer.Argument(help="a base checkpoint, or a grafted folder")
    ] = None,
    families: Annotated[
        bool, typer.Option("--families", help="list the supported model families")
    ] = False,
) -> Outcome:
    """Show family, sizes and files of a checkpoint, and the insertions and signals of a graft."""
    from otter_cli.checkpoint.folder import Checkpoint
    from otter_cli.core.errors import OtterError
    from otter_cli.families.shape import base_shape

    if families:
        return _families()
    if path is None:
        raise OtterError(
            "nothing to inspect", hint="`otter inspect PATH`, or `otter inspect --families`"
        )
    checkpoint = Checkpoint.open(path)
    data = _record(checkpoint, base_shape(checkpoint.config), _manifest(path))
    return Outcome(data, view=lambda: facts_table(_facts(data)))


def _families() -> Outcome:
    from otter_cli.families.entries import REFUSED_FAMILIES
    from otter_cli.families.registry import FAMILIES, WIDE_CLASS_NAMES, wide_layout_refusal

    reasons = {name: family.ffn_only for name, family in sorted(FAMILIES.items())}
    data: dict[str, Any] = {
        "full": [name for name, reason in reasons.items() if not reason],
        "ffn_only": [name for name, reason in reasons.items() if reason],
        "wide": sorted(WIDE_CLASS_NAMES),
        "not_wide": {
            name: why
            for name, family in sorted(FAMILIES.items())
            if (why := wide_layout_refusal(family))
        },
        "refused": {
            name: {"reason": why, "instead": instead}
            for name, (why, instead) in REFUSED_FAMILIES.items()
        },
    }

    rows = [("full insertion", ", ".join(data["full"]))]
    rows += [(f"FFN only: {name}", reasons[name]) for name in data["ffn_only"]]
    rows.append(("export --to wide", ", ".join(data["wide"])))
    for why in dict.fromkeys(data["not_wide"].values()):
        names = [name for name, reason in data["not_wide"].items() if reason == why]
        rows.append(("", f"not {', '.join(names)}: {why}"))
    rows += [
        (f"refused: {name}", f"{refusal['reason']}; try {refusal['instead']}")
        for name, refusal in data["refused"].items()
    ]
    return Outcome(data, lambda: facts_table(rows))


def _manifest(path: Path) -> Manifest | None:
    from otter_cli.checkpoint.folder import MANIFEST

    if not (path / MANIFEST).exists():
        return None
    from otter_cli.graft.manifest import Manifest

    return Manifest.read(path)


def _record(checkpoint: Checkpoint, shape: BaseShape, manifest: Manifest | None) -> dict[str, Any]:
    from dataclasses import asdict

    from otter_cli.families.shape import base_parameters

    sizes = {k: v for k, v in asdict(shape).items() if isinstance(v, int | float | str)}
    record: dict[str, Any] = {
        "path": checkpoint.path,
        "family": shape.family.model_type,
        "ffn_only": shape.family.ffn_only,
        "grafted": manifest is not None,
        "parameters": base_parameters(checkpoint, shape),
        "dtype": checkpoint.dtype,
        "tensors": len(checkpoint.tensors),
        "weight_files": checkpoint.weight_files,
        "files": checkpoint.files,
        **sizes,
        "insertion": None,
        "signals": {},
    }
    if manifest:
        plans = manifest.plans(shape)
        record["insertion"] = [
            {
                **plan.config.model_dump(mode="json"),
                "parameters": plan.parameters,
                "stream": _stream(plan.config, shape, checkpoint),
            }
            for plan in plans
        ]
        record["signals"] = {
            signal.name: {
                **signal.model_dump(mode="json"),
                "insertion": plan.config.name,
                "training": manifest.training.get(signal.name),
            }
            for plan in plans
            for signal in plan.config.signals
        }
        record["base"] = manifest.base.model_dump(mode="json", exclude={"files"})
    return record


def _stream(config: InsertionConfig, shape: BaseShape, checkpoint: Checkpoint) -> str:
    """What runs the stream on this machine's processor, loaded in the base's dtype. Compiles
    nothing."""
    from otter_cli.accel.stream_path import path_text, stream_path
    from otter_cli.core.dtype_names import is_dtype, parse_dtype

    dtype = checkpoint.dtype
    name = parse_dtype(dtype) if is_dtype(dtype) else dtype
    path = stream_path(config, shape, dtype=name, base_config=checkpoint.config, build=False)
    return path_text(path)


def _facts(record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    from otter_cli.core.formatting import count_text, percent_text

    yield "folder", str(record["path"])
    only = f"FFN insertion only: {record['ffn_only']}" if record["ffn_only"] else "full insertion"
    yield "family", f"{record['family']} ({only})"
    base = (
        f"{count_text(record['parameters'])} parameters, {record['dtype']}, "
        f"{record['tensors']} tensors in {len(record['weight_files'])} file(s)"
    )
    yield "base", base + (", tied embeddings" if record["tied"] else "")
    shape = (
        f"{record['layers']} layers, width {record['hidden']}, {record['heads']} heads of "
        f"{record['head_dim']} over {record['kv_heads']}, FFN {record['ffn']}, "
        f"vocabulary {record['vocab']}, context {record['max_positions']}"
    )
    yield "shape", shape
    if not record["grafted"]:
        yield "insertion", "none; `otter graft` adds one"
    for insertion in record["insertion"] or []:
        share = percent_text(insertion["parameters"] / record["parameters"])
        sizes = (
            f"{count_text(insertion['parameters'])} parameters ({share}): hidden "
            f"{insertion['hidden']}, heads {insertion['heads']} on {insertion['kv']} keys and "
            f"values, FFN {insertion['ffn']}, {len(insertion['layers'])} layers, "
            f"{insertion['norm']} norm, {insertion['init']} init, {insertion['dtype']}"
        )
        yield f"insertion {insertion['name']}", sizes
        yield "its stream", insertion["stream"]
    for name, signal in record["signals"].items():
        training = signal["training"]
        state = (
            f"trained {training.steps} steps ({training.objective})" if training else "untrained"
        )
        yield f"signal {name}", f"{signal['kind']}, size {signal['size']}: {state}"
