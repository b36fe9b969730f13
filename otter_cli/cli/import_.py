"""`otter import`: converts a GGUF file to a checkpoint folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from otter_cli.cli.command import Outcome, verb, verb_app
from otter_cli.core.dtype_names import DTYPE_HELP, parse_dtype

if TYPE_CHECKING:
    from otter_cli.checkpoint.gguf.convert import ImportedModel


app = verb_app()


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
            help="a .gguf file; for a split model any part, with the others in the same folder: "
            "NAME-00001-of-00003.gguf or NAME.gguf.part00"
        ),
    ],
    out: Annotated[Path, typer.Argument(help="the checkpoint folder to write")],
    dtype: Annotated[
        str,
        typer.Option("--dtype", help=f"dtype of the stored tensors: {DTYPE_HELP}"),
    ] = "bfloat16",
) -> Outcome:
    """Import a GGUF file as a checkpoint folder: safetensors, config.json, tokenizer.

    The base is the dequantised model, as transformers reads it, not the model before quantisation.
    otter.import.json in the folder records the digest and the quantisation types of the source.
    """
    from otter_cli.checkpoint.gguf.convert import import_gguf

    imported = import_gguf(source, out, dtype=parse_dtype(dtype))
    refusal = _graft_refusal(imported.config)
    data = {
        "out": out,
        "family": imported.config.get("model_type"),
        "graft": refusal is None,
        "graft_refuses": refusal,
        "tensors": imported.tensors,
        "parameters": imported.parameters,
        "bytes": imported.stored_bytes,
        "tokenizer": imported.has_tokenizer,
        **imported.record,
    }
    return Outcome(data, view=lambda: _view(imported, refusal))


def _graft_refusal(config: dict[str, Any]) -> str | None:
    """Why `otter graft` refuses a model of this configuration, or None if it accepts it."""
    from otter_cli.core.errors import OtterError
    from otter_cli.families.shape import base_shape

    try:
        base_shape(config)
    except OtterError as error:
        return error.what
    return None


def _view(imported: ImportedModel, refusal: str | None) -> str:
    from otter_cli.core.formatting import bytes_text, count_text

    kinds = ", ".join(
        f"{count_text(stored['parameters'])} in {kind}"
        for kind, stored in imported.record["source"]["quantisation"].items()
    )
    family, dtype = imported.config.get("model_type"), imported.record["dtype"]
    size = f"{count_text(imported.parameters)} parameters, {bytes_text(imported.stored_bytes)}"
    lines = [
        f"{imported.out}: {family}, {size} in {dtype}",
        f"dequantised from {kinds}: the base is this model, not the model before quantisation",
        f"next: otter graft {imported.out} OUT"
        if refusal is None
        else f"otter graft will refuse it: {refusal}",
    ]
    return "\n".join(lines)
