"""`otter export`: write a grafted folder in another layout, and say what holds for it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from otter_cli.cli.command import Outcome, verb, verb_app
from otter_cli.cli.recipe_files import placed_files_record, placed_files_text
from otter_cli.core.errors import OtterError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from otter_cli.serving.layouts import Export, WideDifference


app = verb_app()


class ExportLayout(StrEnum):
    adapter = "adapter"
    wide = "wide"
    base = "base"
    vllm = "vllm"


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
            help="adapter: the inserted tensors alone; wide: one checkpoint for stock "
            "transformers; base: the base again; vllm: a folder that vLLM serves with the plugin",
        ),
    ],
    draft: Annotated[
        str | None,
        typer.Option(
            "--draft",
            metavar="<signal>",
            help="with --to vllm: this future signal becomes DIR/drafter, in Medusa's format",
        ),
    ] = None,
) -> Outcome:
    """Write another layout of a graft, read it again, and say what holds for it.

    An adapter loads on its base and on no other; a base is the base byte for byte. Wide is not
    exact: its difference is measured, and the exit code is 1 where signals are too far off.
    """
    done = _export(folder, out, to, draft)
    warnings = _position_warnings(folder) if to in (ExportLayout.wide, ExportLayout.vllm) else []
    placed = placed_files_record(folder, done.files, out)
    data = {
        "out": out,
        **placed,
        "layout": to.value,
        "files": done.files,
        "verdict": done.verdict,
        "statement": done.statement,
        "differences": done.differences,
        "unmeasured": done.unmeasured,
        "warnings": warnings,
    }
    line = placed_files_text(placed, folder)
    return Outcome(data, lambda: _view(out, done, line), exit_code=int(done.verdict == "different"))


def _position_warnings(folder: Path) -> list[str]:
    """Warns of signals that are served at every token, and were trained at the last alone."""
    from otter_cli.core.console import warn
    from otter_cli.graft.manifest import USE_MONITOR, Manifest, untrained_position_warnings

    training = Manifest.read(folder).training
    found = untrained_position_warnings(training, dict.fromkeys(training, (USE_MONITOR,)))
    for text in found:
        warn(text)
    return found


def _export(folder: Path, out: Path, to: ExportLayout, draft: str | None) -> Export:
    if draft is not None and to is not ExportLayout.vllm:
        raise OtterError(
            f"--draft goes with --to vllm, not with --to {to.value}",
            hint="otter generate --draft SIGNAL drafts with the graft itself",
        )
    if to is ExportLayout.wide:
        from otter_cli.serving.wide.export import export_wide

        return export_wide(folder, out)
    if to is ExportLayout.vllm:
        from otter_cli.serving.vllm.export import export_vllm

        return export_vllm(folder, out, draft=draft)
    from otter_cli.serving.layouts import export_adapter, export_base

    return export_adapter(folder, out) if to is ExportLayout.adapter else export_base(folder, out)


def _view(out: Path, done: Export, placed: str) -> RenderableType:
    from rich.console import Group

    parts: list[RenderableType] = [f"{out}: {len(done.files)} files"]
    if done.differences:
        parts += ["", _differences_table(done.differences), ""]
    parts += [f"{dtype} not measured: {why}" for dtype, why in done.unmeasured.items()]
    return Group(*parts, placed, f"{done.verdict}: {done.statement}")


def _differences_table(differences: list[WideDifference]) -> RenderableType:
    """One row a dtype; a signal's cell is its largest difference and its largest value."""
    from rich.table import Table

    from otter_cli.core.formatting import percent_text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("", "logits moved", "largest", "argmaxes", *differences[0].signals):
        table.add_column(title, justify="right" if title else "left")
    for found in differences:
        table.add_row(
            found.dtype,
            f"{percent_text(found.moved / found.logits)} of {found.logits:,}",
            f"{found.largest:.1e}" + (f", {found.lost:,} lost" if found.lost else ""),
            f"{found.flipped} of {found.tokens}",
            *(f"{s.largest:.1e} of {s.scale:.1f}" for s in found.signals.values()),
        )
    return table
