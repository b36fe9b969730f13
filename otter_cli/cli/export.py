"""`otter export`: writes a grafted folder in another layout, and judges it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from otter_cli.cli.command import Outcome, verb, verb_app
from otter_cli.cli.placed_files import PlacedFiles
from otter_cli.cli.tables import legend, plain_table
from otter_cli.core.errors import OtterError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from otter_cli.serving.layouts import Export, WideDifference


app = verb_app()


ExportLayout = Literal["adapter", "wide", "base", "vllm"]


@verb(
    app,
    example="otter export grafted my-adapter --to adapter\notter export grafted wide --to wide",
    uses_graft=True,
)
def export(
    folder: Annotated[Path, typer.Argument(help="the grafted folder")],
    out: Annotated[Path, typer.Argument(help="where the export goes")],
    to: Annotated[
        ExportLayout,
        typer.Option(
            "--to",
            help="adapter: the inserted tensors only; wide: one checkpoint for stock transformers; "
            "base: the base alone; vllm: a folder that vLLM serves with the plugin",
        ),
    ],
    draft: Annotated[
        str | None,
        typer.Option(
            "--draft",
            metavar="<signal>",
            help="with --to vllm: write this future signal to OUT/drafter, in Medusa's format",
        ),
    ] = None,
) -> Outcome:
    """Write another layout of a graft, read it back, and report what holds for it.

    An adapter loads only with its own base. The exported base equals the original byte for byte.
    The wide layout is not exact: its difference is measured, and the exit code is 1 if signals
    differ too much.
    """
    exported = _export(folder, out, to, draft)
    warnings = _position_warnings(folder) if to in ("wide", "vllm") else []
    placed = PlacedFiles.find(folder, exported.files, out)
    data = {
        "out": out,
        **placed.record(),
        "layout": to,
        "files": exported.files,
        "verdict": exported.verdict,
        "statement": exported.statement,
        "differences": exported.differences,
        "unmeasured": exported.unmeasured,
        "warnings": warnings,
    }
    return Outcome(
        data,
        lambda: _view(out, exported, str(placed)),
        exit_code=int(exported.verdict == "different"),
    )


def _position_warnings(folder: Path) -> list[str]:
    """Warnings, also printed, about signals that are trained at the last token only: the wide and
    vllm layouts serve them at every token."""
    from otter_cli.core.console import warn
    from otter_cli.graft.manifest import USE_MONITOR, Manifest, untrained_position_warnings

    training = Manifest.read(folder).training
    warnings = untrained_position_warnings(training, dict.fromkeys(training, (USE_MONITOR,)))
    for text in warnings:
        warn(text)
    return warnings


def _export(folder: Path, out: Path, to: ExportLayout, draft: str | None) -> Export:
    if draft is not None and to != "vllm":
        raise OtterError(
            f"--draft goes with --to vllm, not with --to {to}",
            hint="`otter generate FOLDER --draft SIGNAL` drafts with the graft itself",
        )
    if to == "wide":
        from otter_cli.serving.wide.export import export_wide

        return export_wide(folder, out)
    if to == "vllm":
        from otter_cli.serving.vllm.export import export_vllm

        return export_vllm(folder, out, draft=draft)
    from otter_cli.serving.layouts import export_adapter, export_base

    return export_adapter(folder, out) if to == "adapter" else export_base(folder, out)


def _view(out: Path, exported: Export, placed: str) -> RenderableType:
    from rich.console import Group

    parts: list[RenderableType] = [f"{out}: {len(exported.files)} files"]
    if exported.differences:
        parts += ["", _differences_table(exported.differences), ""]
    parts += [f"{dtype} not measured: {why}" for dtype, why in exported.unmeasured.items()]
    return Group(*parts, placed, f"{exported.verdict}: {exported.statement}")


def _differences_table(differences: list[WideDifference]) -> RenderableType:
    """One row per dtype. The cell of a signal holds its largest difference and largest value."""
    from rich.console import Group

    from otter_cli.core.formatting import percent_text

    titles = ("", "logits moved", "largest", "argmaxes", *differences[0].signals)
    table = plain_table(*titles, numeric=True)
    for row in differences:
        table.add_row(
            row.dtype,
            f"{percent_text(row.moved / row.logits)} of {row.logits:,}",
            f"{row.largest:.1e}" + (f", {row.lost:,} lost" if row.lost else ""),
            f"{row.flipped} of {row.tokens}",
            *(f"{s.largest:.1e} of {s.scale:.1f}" for s in row.signals.values()),
        )
    return Group(table, legend(_DIFFERENCES_LEGEND))


_DIFFERENCES_LEGEND = (
    "logits moved: those that differ from the graft's; largest: the largest difference; argmaxes: "
    "tokens whose likeliest next token changes; a signal's column: its largest difference, and its "
    "largest value"
)
