"""The static level for a folder that otter did not graft. No torch.

Any checkpoint is compared with its base: tensors, tokenizer and generation settings. Of a wide
export `[[W, W^h], [0, W^z]]`, the first block must be the base's, and the zero block zero by its
bits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from otter_cli.checkpoint.folder import Checkpoint, list_base_files
from otter_cli.core.console import progress
from otter_cli.core.strict_files import read_json_object, read_small_file
from otter_cli.families.shape import base_shape
from otter_cli.verification.static import (
    FileHasher,
    Finding,
    StaticResult,
    TensorDifference,
    compare_tensors,
)


def is_wide_export(config: dict[str, Any]) -> bool:
    return "otter_base_hidden" in config


def compare_wide(folder: Checkpoint, base: Checkpoint) -> Iterator[TensorDifference]:
    """Every tensor of the base that is not in its corner of the wide one, bit for bit, and every
    zero block that is not zero: -0.0 counts, for it times infinity is NaN as well."""
    family = base_shape(base.config).family
    embedding, head = f"{family.embedding}.weight", f"{family.head}.weight"
    sources = {name: name for name in base.tensors}
    # Tied embeddings come apart: [E E_z] against [W_U 0].
    sources.setdefault(head, embedding)
    with progress(len(sources), "comparing blocks") as advance:
        for name, source in sources.items():
            advance(1)
            if name not in folder.tensors:
                yield name, base.file_of[source], "is missing"
                continue
            for what in _block_differences(folder, base, name, source, reads=name != embedding):
                yield name, folder.file_of[name], what


def _block_differences(
    folder: Checkpoint, base: Checkpoint, name: str, source: str, *, reads: bool
) -> Iterator[str]:
    info, was = folder.tensors[name], base.tensors[source]
    if len(info.shape) != len(was.shape) or any(map(int.__lt__, info.shape, was.shape)):
        yield f"is {[*info.shape]}, which cannot hold the base's {[*was.shape]}"
        return
    wide, plain = _byte_rows(folder, name), _byte_rows(base, source)
    rows = len(plain)
    width = was.shape[-1] * (info.nbytes // info.count)
    if info.dtype != was.dtype:
        yield f"is {info.dtype}, the base's {was.dtype}"
    elif (moved := wide[:rows, :width] != plain).any():
        yield f"differs from the base's at {_element(moved, plain, was.shape)}"
    if reads and len(was.shape) == 2 and (filled := wide[:rows, width:] != 0).any():
        row = int(filled.any(-1).argmax())
        yield f"lets the insertion into the base: its zero block is not zero in row {row}"


def _byte_rows(checkpoint: Checkpoint, name: str) -> Any:
    """[rows, bytes of a row]; of a vector, one row."""
    info = checkpoint.tensors[name]
    rows = info.shape[0] if len(info.shape) == 2 else 1
    return np.frombuffer(checkpoint.read_raw(name), np.uint8).reshape(rows, -1)


def _element(moved: Any, plain: Any, shape: tuple[int, ...]) -> str:
    first = int(moved.reshape(-1).argmax())
    return f"element {first * int(np.prod(shape)) // plain.size}"


# Saving a model again writes these anew, and changes nothing by it.
_IGNORED_KEYS = {"transformers_version", "_name_or_path"}
_GENERATION_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
)


def check_foreign_checkpoint(folder: Path, base: Path) -> StaticResult:
    """Any folder against `base`: its tensors, in whatever files, and what steers a model.

    Of a wide export, block by block. A changed config.json is only noted: what comes of it is what
    the grid measures. Raises OtterError for a folder that is no safetensors checkpoint.
    """
    ours, theirs = Checkpoint.open(folder), Checkpoint.open(base)
    found = StaticResult(tensors=len(theirs.tensors))
    wide = is_wide_export(ours.config)
    compare = compare_wide if wide else compare_tensors
    for tensor, file, what in compare(ours, theirs):
        found.findings.append(Finding(what, str(folder / file), tensor))
    extra = sorted(ours.tensors.keys() - theirs.tensors.keys())
    if wide:
        found.notes.append(
            "a wide export: blocks are compared, zero ones must be zero by their bits"
        )
    elif extra:
        found.notes.append(f"{len(extra)} tensors are new, the first is {extra[0]}")
    for key in () if wide else _changed_keys(folder / "config.json", base / "config.json"):
        found.notes.append(f"config.json: {key} is not the base's")
    for file in _GENERATION_FILES:
        if (base / file).exists():
            found.files += 1
            found.findings += _file_differences(folder, base, file)
    _add_digests(found, {"folder": folder, "base": base})
    return found


def _file_differences(folder: Path, base: Path, file: str) -> Iterator[Finding]:
    """How a file that decides on what is generated, or what tokens mean, departs."""
    path = folder / file
    if not path.exists():
        yield Finding("is missing", str(path))
    elif read_small_file(path) == read_small_file(base / file):
        return
    elif path.suffix != ".json":
        yield Finding("differs from the base's", str(path))
    else:
        for key in _changed_keys(path, base / file):
            yield Finding(f"has another {key} than the base's", str(path))


def _changed_keys(mine: Path, theirs: Path) -> list[str]:
    """Top-level keys whose values differ; formatting and bookkeeping do not count."""
    a, b = read_json_object(mine), read_json_object(theirs)
    keys = sorted((a.keys() | b.keys()) - _IGNORED_KEYS)
    return [key for key in keys if a.get(key) != b.get(key)]


def _add_digests(found: StaticResult, roots: dict[str, Path]) -> None:
    files = {name: list_base_files(root) for name, root in roots.items()}
    total = sum((roots[name] / file).stat().st_size for name in roots for file in files[name])
    with progress(total, "hashing files") as advance:
        digests = FileHasher(advance)
        for name, root in roots.items():
            found.digests[name] = {file: digests.sha256(root / file) for file in files[name]}
