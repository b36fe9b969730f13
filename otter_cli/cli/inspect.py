"""`otter inspect`: shows what a folder holds, what was grafted onto it, and what can be."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from otter_cli.cli.command import Outcome, verb, verb_app

if TYPE_CHECKING:
    from rich.console import RenderableType

    from otter_cli.checkpoint.folder import Checkpoint
    from otter_cli.families.shape import BaseShape
    from otter_cli.graft.manifest import Manifest


app = verb_app()


@verb(app, example="otter inspect grafted\notter inspect --families")
def inspect(
    path: Annotated[
        Path | None, typer.Argument(help="a base checkpoint, or a grafted folder")
    ] = None,
    families: Annotated[
        bool, typer.Option("--families", help="list the families that are supported")
    ] = False,
) -> Outcome:
    """Show family, sizes and files of a checkpoint; of a graft its insertion and signals too."""
    from otter_cli.checkpoint.folder import Checkpoint
    from otter_cli.core.errors import OtterError
    from otter_cli.families.shape import base_shape

    if families:
        return _families()
    if path is None:
        raise OtterError(
            "inspect what?", hint="`otter inspect PATH`, or `otter inspect --families`"
        )
    checkpoint = Checkpoint.open(path)
    data = _record(checkpoint, base_shape(checkpoint.config), _manifest(path))
    return Outcome(data, view=lambda: _view(data))


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

    def view() -> RenderableType:
        table = _facts_table()
        table.add_row("full insertion", ", ".join(data["full"]))
        for name in data["ffn_only"]:
            table.add_row(f"FFN only: {name}", reasons[name])
        table.add_row("export --to wide", ", ".join(data["wide"]))
        for why in dict.fromkeys(data["not_wide"].values()):
            names = [name for name, reason in data["not_wide"].items() if reason == why]
            table.add_row("", f"not {', '.join(names)}: {why}")
        for name, refusal in data["refused"].items():
            table.add_row(f"refused: {name}", f"{refusal['reason']}; try {refusal['instead']}")
        return table

    return Outcome(data, view)


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
            {**plan.config.model_dump(mode="json"), "parameters": plan.parameters} for plan in plans
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


def _facts_table() -> Any:
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _view(record: dict[str, Any]) -> RenderableType:
    from otter_cli.core.formatting import count_text, percent_text

    table = _facts_table()
    table.add_row("folder", str(record["path"]))
    only = f"FFN insertion only: {record['ffn_only']}" if record["ffn_only"] else "full insertion"
    table.add_row("family", f"{record['family']} ({only})")
    table.add_row(
        "base",
        f"{count_text(record['parameters'])} parameters, {record['dtype']}, "
        f"{record['tensors']} tensors in {len(record['weight_files'])} file(s)"
        + (", tied embeddings" if record["tied"] else ""),
    )
    table.add_row(
        "shape",
        f"{record['layers']} layers, width {record['hidden']}, {record['heads']} heads of "
        f"{record['head_dim']} over {record['kv_heads']}, FFN {record['ffn']}, "
        f"vocabulary {record['vocab']}, context {record['max_positions']}",
    )
    if not record["grafted"]:
        table.add_row("insertion", "none; `otter graft` adds one")
    for insertion in record["insertion"] or []:
        share = percent_text(insertion["parameters"] / record["parameters"])
        table.add_row(
            f"insertion {insertion['name']}",
            f"{count_text(insertion['parameters'])} parameters ({share}): hidden "
            f"{insertion['hidden']}, heads {insertion['heads']} on {insertion['kv']} keys and "
            f"values, FFN {insertion['ffn']}, {len(insertion['layers'])} layers, "
            f"{insertion['norm']} norm, {insertion['init']} init, {insertion['dtype']}",
        )
    for name, signal in record["signals"].items():
        training = signal["training"]
        state = (
            f"trained {training.steps} steps ({training.objective})" if training else "untrained"
        )
        table.add_row(f"signal {name}", f"{signal['kind']}, size {signal['size']}: {state}")
    return table
