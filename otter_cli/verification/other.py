"""Static comparison of a folder that otter did not make with the base it comes from. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.checkpoint.listing import base_files
from otter_cli.checkpoint.strict_json import read_object
from otter_cli.core.console import progress
from otter_cli.core.small_files import read_small
from otter_cli.verification.findings import Digests, Finding, Static
from otter_cli.verification.tensors import compare_tensors
from otter_cli.verification.wide import compare_wide, is_wide

# Saving a model again writes these anew, and changes nothing by it.
_BOOKKEEPING = {"transformers_version", "_name_or_path"}
_STEERING = ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model")


def check_other(folder: Path, base: Path) -> Static:
    """Any folder against `base`: its tensors, in whatever files, and what steers a model.

    Of a wide export, block by block. A changed config.json is only noted: what comes of it is what
    the grid measures. Raises OtterError for a folder that is no safetensors checkpoint.
    """
    ours, theirs = Checkpoint.open(folder), Checkpoint.open(base)
    found = Static(tensors=len(theirs.tensors))
    wide = is_wide(ours.config)
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
    for file in _STEERING:
        if (base / file).exists():
            found.files += 1
            found.findings += _steering(folder, base, file)
    _digest(found, {"folder": folder, "base": base})
    return found


def _steering(folder: Path, base: Path, file: str) -> Iterator[Finding]:
    """How a file that decides on what is generated, or what tokens mean, departs."""
    path = folder / file
    if not path.exists():
        yield Finding("is missing", str(path))
    elif read_small(path) == read_small(base / file):
        return
    elif path.suffix != ".json":
        yield Finding("differs from the base's", str(path))
    else:
        for key in _changed_keys(path, base / file):
            yield Finding(f"has another {key} than the base's", str(path))


def _changed_keys(mine: Path, theirs: Path) -> list[str]:
    """Top-level keys whose values differ; formatting and bookkeeping do not count."""
    a, b = read_object(mine), read_object(theirs)
    keys = sorted((a.keys() | b.keys()) - _BOOKKEEPING)
    return [key for key in keys if a.get(key) != b.get(key)]


def _digest(found: Static, roots: dict[str, Path]) -> None:
    files = {name: base_files(root) for name, root in roots.items()}
    total = sum((roots[name] / file).stat().st_size for name in roots for file in files[name])
    with progress(total, "hashing files") as advance:
        digests = Digests(advance)
        for name, root in roots.items():
            found.digests[name] = {file: digests.sha256(root / file) for file in files[name]}
