"""A GGUF model converted to a checkpoint folder.

The folder gets the tokenizer, the configuration, the dequantised tensors and an import record.
"""

from __future__ import annotations

import gc
import shutil
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otter_cli.checkpoint.dtypes import Array
from otter_cli.checkpoint.folder import IMPORT_RECORD
from otter_cli.checkpoint.gguf.header import GgufHeader, StringArray, read_gguf_header
from otter_cli.checkpoint.gguf.model import (
    ModelDescription,
    count_quantised_types,
    describe_model,
    metadata_not_carried,
    needs_whole_model,
    read_by_transformers,
    refuse_unsupported_gguf,
)
from otter_cli.checkpoint.gguf.parts import (
    GgufParts,
    find_gguf_parts,
    join_parts,
    read_gguf_headers,
)
from otter_cli.core.atomic import staged_folder, write_json
from otter_cli.core.console import progress, say, warn
from otter_cli.core.errors import OtterError, from_os_error
from otter_cli.core.formatting import bytes_text
from otter_cli.core.process import release_free_memory

if TYPE_CHECKING:
    from otter_cli.checkpoint.gguf.tensors import ModelTensors


# The names of transformers, and those of safetensors.
IMPORT_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}

_STATEMENT = (
    "The base is the dequantised model: the numbers that the quantised tensors stand for, stored "
    "in `dtype`. It is not the model before quantisation."
)
_ELEMENTS_AT_ONCE = 2**19


@dataclass(frozen=True)
class ImportedModel:
    """`record` is the content of the folder's otter.import.json."""

    out: Path
    config: dict[str, Any]
    tensors: int
    parameters: int
    stored_bytes: int
    has_tokenizer: bool
    record: dict[str, Any]


def import_gguf(
    source: Path, out: Path, *, dtype: str = "bfloat16", origin: str | None = None
) -> ImportedModel:
    """Write the model of the GGUF file `source` as the checkpoint folder `out`.

    `origin` says where the file came from, for the record. Raises OtterError for a file that
    cannot be imported, and writes nothing then.
    """
    if out.exists():
        raise OtterError(f"{out} exists already", hint="choose another OUT, or remove it")
    try:
        parts = find_gguf_parts(source)
        headers = read_gguf_headers(parts)
        if headers:
            refuse_unsupported_gguf(headers)
        return _convert(parts, headers, out, dtype, origin)
    except OSError as error:
        raise from_os_error(error, f"import {source}") from error


def _convert(
    parts: GgufParts, headers: list[GgufHeader], out: Path, dtype: str, origin: str | None
) -> ImportedModel:
    from otter_cli.checkpoint.gguf.tensors import GgufTensors, WholeModelTensors

    with staged_folder(out, sources=parts.files) as staging:
        joined = staging / "joined.gguf"
        header = headers[0] if parts.layout == "single" else _join(parts, headers, joined)
        description = describe_model(header, dtype)
        kind = WholeModelTensors if needs_whole_model(header.architecture) else GgufTensors
        tensors = kind(header, description, IMPORT_DTYPES[dtype])
        _refuse_full_disk(staging, sum(spec.nbytes for spec in tensors.specs.values()))
        has_tokenizer = _save_tokenizer(header, description, staging)
        _save_configuration(header, description, staging)
        files = _write_tensors(parts, header, tensors, staging)
        record = _import_record(header, dtype, origin, {"layout": parts.layout, "files": files})
        write_json(staging / IMPORT_RECORD, record)
        joined.unlink(missing_ok=True)
    specs = tensors.specs.values()
    return ImportedModel(
        out=out,
        config=description.config.to_dict(),
        tensors=len(specs),
        parameters=sum(prod(spec.shape) for spec in specs),
        stored_bytes=sum(spec.nbytes for spec in specs),
        has_tokenizer=has_tokenizer,
        record=record,
    )


def _join(parts: GgufParts, headers: list[GgufHeader], joined: Path) -> GgufHeader:
    """Write the parts as one file, and return its header."""
    _refuse_full_disk(joined.parent, sum(file.stat().st_size for file in parts.files))
    say(f"joining {len(parts.files)} files")
    join_parts(parts, headers, joined)
    try:
        header = read_gguf_header(joined)
        refuse_unsupported_gguf([header])
    except OtterError as error:
        # The user knows the parts, not the joined file.
        what = error.what.replace(str(joined), f"{parts.files[0]} and the files after it")
        missing = parts.layout == "pieces" and "truncated" in what
        hint = "is the last piece missing? fetch it again" if missing else error.hint
        raise OtterError(what, hint=hint) from error
    return header


def _refuse_full_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OtterError(
            f"{folder.parent}: {bytes_text(needed)} are needed and {bytes_text(free)} are free",
            hint="free some space on that file system, or choose a target on another one",
        )


def _save_tokenizer(header: GgufHeader, description: ModelDescription, staging: Path) -> bool:
    """Save transformers' tokenizer for the file, with special tokens and chat template. Returns
    whether the file holds one."""
    if not isinstance(header.metadata.get("tokenizer.ggml.tokens"), StringArray):
        warn(f"{header.path.name} holds no tokenizer: put the model's own into the folder")
        return False
    from transformers import AutoTokenizer

    with read_by_transformers("tokenizer", header.path), description.known_to_transformers():
        tokenizer = AutoTokenizer.from_pretrained(
            str(header.path.parent),
            gguf_file=header.path.name,
            local_files_only=True,
            trust_remote_code=False,  # a tokenizer_config.json beside the file may name code
        )
        tokenizer.save_pretrained(staging)
    # Its merges are a million small objects, whose memory the tensors need.
    del tokenizer
    gc.collect()
    release_free_memory()
    return True


def _save_configuration(header: GgufHeader, description: ModelDescription, staging: Path) -> None:
    from transformers import GenerationConfig

    with read_by_transformers("configuration", header.path):
        description.config.save_pretrained(staging)
        if not description.model.can_generate():
            return
        generation = GenerationConfig.from_model_config(description.config)
        # Chat models end a turn with a special token, which the file names beside the end of text.
        end_of_turn = header.metadata.get("tokenizer.ggml.eot_token_id")
        ends = generation.eos_token_id
        ends = [ends] if isinstance(ends, int) else list(ends or [])
        if isinstance(end_of_turn, int) and end_of_turn not in ends:
            generation.eos_token_id = [*ends, end_of_turn]
        generation.save_pretrained(staging)


def _write_tensors(
    parts: GgufParts, header: GgufHeader, tensors: ModelTensors, staging: Path
) -> list[dict[str, Any]]:
    """Write the tensors. Returns name, size and digest of the source's files."""
    from otter_cli.checkpoint.safetensors_writer import write_sharded
    from otter_cli.core.digests import sha256_file

    sizes = [file.stat().st_size for file in parts.files]
    total = sum(sizes) + sum(spec.nbytes for spec in tensors.specs.values())
    name = header.metadata.get("general.name", header.path.stem)
    with progress(total, f"importing {name}") as advance:
        files = [
            {"name": file.name, "bytes": size, "sha256": sha256_file(file, advance)}
            for file, size in zip(parts.files, sizes, strict=True)
        ]

        def make(name: str) -> Array:
            values = _require_finite_values(tensors.make(name), name, header)
            advance(tensors.specs[name].nbytes)
            return values

        write_sharded(staging, "model", tensors.specs, make, {"format": "pt"})
    return files


def _require_finite_values(values: Array, name: str, header: GgufHeader) -> Array:
    """A single weight that is not finite spoils every logit."""
    import numpy as np

    flat = values.reshape(-1)
    for start in range(0, flat.size, _ELEMENTS_AT_ONCE):
        piece = flat[start : start + _ELEMENTS_AT_ONCE]
        is_bfloat16 = piece.dtype == np.uint16
        if ((piece & 0x7F80) == 0x7F80 if is_bfloat16 else ~np.isfinite(piece)).any():
            raise OtterError(
                f"{header.path}: tensor {name} has values that are infinite or NaN",
                hint="the file is damaged, or its values are beyond what the dtype can store",
            )
    return values


def _import_record(
    header: GgufHeader, dtype: str, origin: str | None, source: dict[str, Any]
) -> dict[str, Any]:
    from otter_cli.core.provenance import versions

    about = {
        key: header.metadata[f"general.{key}"]
        for key in ("name", "license", "basename", "size_label", "finetune")
        if f"general.{key}" in header.metadata
    }
    return {
        "schema_version": 1,
        "statement": _STATEMENT,
        "dtype": dtype,
        "source": {
            "format": f"GGUF version {header.version}",
            "origin": origin,
            **source,
            "architecture": header.architecture,
            "general": about,
            "quantisation": count_quantised_types([header]),
            "metadata_not_carried": metadata_not_carried(header),
        },
        "versions": versions(),
    }
