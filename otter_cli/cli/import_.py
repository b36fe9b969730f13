"""`otter import`: converts a GGUF file to a checkpoint folder."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from otter_cli.cli.command import Outcome, verb, verb_app

if TYPE_CHECKING:
    from rich.console import RenderableType

    from otter_cli.checkpoint.gguf.convert import ImportedModel


app = verb_app()


class ImportDtype(StrEnum):
    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


@verb(
    app,
    name="import",
    example="""\
    otter import SmolLM2-135M-Instruct.Q4_1.gguf smollm2
    otter import big-00001-of-00003.gguf big --dtype float32""",
)
def import_(
    source: Annotated[
        Path,
        typer.Argument(
            help="a .gguf file; of a split model any part, with the others beside it: "
            "NAME-00001-of-00003.gguf or NAME.gguf.part00"
        ),
    ],
    out: Annotated[Path, typer.Argument(help="the checkpoint folder to write")],
    dtype: Annotated[
        ImportDtype, typer.Option("--dtype", help="of the stored tensors")
    ] = ImportDtype.bfloat16,
) -> Outcome:
    """Import a GGUF file as a checkpoint folder: safetensors, config.json, tokenizer.

    The base is then the dequantised model, as transformers reads it, and not the model before
    quantisation. otter.import.json in the folder records the source's digest and its types.
    """
    from otter_cli.checkpoint.gguf.convert import import_gguf

    done = import_gguf(source, out, dtype=dtype.value)
    refused = _graft_refusal(done.config)
    data = {
        "out": out,
        "family": done.config.get("model_type"),
        "graft": refused is None,
        "graft_refuses": refused,
        "tensors": done.tensors,
        "parameters": done.parameters,
        "bytes": done.stored_bytes,
        "tokenizer": done.has_tokenizer,
        **done.record,
    }
    return Outcome(data, view=lambda: _view(done, refused))


def _graft_refusal(config: dict[str, Any]) -> str | None:
    """What `otter graft` would say, or None where it takes the model."""
    from otter_cli.core.errors import OtterError
    from otter_cli.families.shape import base_shape

    try:
        base_shape(config)
    except OtterError as error:
        return error.what
    return None


def _view(done: ImportedModel, refused: str | None) -> RenderableType:
    from otter_cli.core.formatting import bytes_text, count_text

    kinds = ", ".join(
        f"{count_text(stored['parameters'])} in {kind}"
        for kind, stored in done.record["source"]["quantisation"].items()
    )
    size = f"{count_text(done.parameters)} parameters, {bytes_text(done.stored_bytes)}"
    lines = [
        f"{done.out}: {done.config.get('model_type')}, {size} in {done.record['dtype']}",
        f"dequantised from {kinds}: the base is these numbers, not the model before quantisation",
        f"next: otter graft {done.out} OUT"
        if refused is None
        else f"otter graft will refuse it: {refused}",
    ]
    return "\n".join(lines)
