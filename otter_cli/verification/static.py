"""The static level: a folder's files and tensors on disk, compared with its base. No torch.

`check_graft` hashes every file of the base against otter.json, compares every tensor with the
base's byte for byte, and compares inserted tensors with the plan. `check_foreign_checkpoint`
compares any other folder with its base. Of a wide export `[[W, W^h], [0, W^z]]` (docs/method.md,
"Additive and wide layouts"), the first block must be the base's and the zero block must be zero,
bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from otter_cli.checkpoint.folder import MANIFEST, Checkpoint, is_model_defining, list_base_files
from otter_cli.checkpoint.safetensors_reader import ShardedTensors
from otter_cli.core.console import progress
from otter_cli.core.digests import sha256_file
from otter_cli.core.errors import OtterError
from otter_cli.core.strict_files import read_json_object, read_small_file
from otter_cli.families.registry import is_wide_config
from otter_cli.families.shape import base_shape
from otter_cli.graft.manifest import Manifest
from otter_cli.graft.storage import FILE_STEM, inserted_files, plan_differences

# Keys of config.json that change when a model is saved again, without any effect.
_IGNORED_KEYS = {"transformers_version", "_name_or_path"}
_GENERATION_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
)
_BLOCK = 16 * 2**20

# Name of a tensor, its file in the folder, and how it differs there.
TensorDifference = tuple[str, str, str]


@dataclass(frozen=True)
class Finding:
    """Something on disk that is not as it should be, with its file and, if any, its tensor."""

    what: str
    file: str
    tensor: str | None = None

    def __str__(self) -> str:
        tensor = f"tensor {self.tensor} in " if self.tensor else ""
        return f"{tensor}{self.file} {self.what}"


@dataclass
class StaticResult:
    """Counts of compared files and tensors of the base, and of inserted tensors.

    `findings` refute the graft, `notes` do not. `digests` holds those of every file by side,
    "folder" and "base".
    """

    files: int = 0
    tensors: int = 0
    inserted: int = 0
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    digests: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        return not self.findings

    def record(self) -> dict[str, Any]:
        return {"holds": self.holds, **asdict(self)}


def check_graft(folder: Path, base: Path | None) -> StaticResult:
    """Compares a graft, or an adapter alone, with the digests in its otter.json and with `base`.

    Raises OtterError without a manifest, and for an adapter without a base.
    """
    manifest = Manifest.read(folder)
    result = StaticResult(files=len(manifest.base.files))
    is_adapter = not (folder / "config.json").exists()
    roots = {} if is_adapter else {"folder": folder}
    roots |= {} if base is None else {"base": base}
    if not roots:
        raise OtterError(f"{folder} is an adapter alone", hint="give its base: --base BASE")
    recorded = manifest.base.files
    present = {
        side: [name for name in recorded if (root / name).is_file()] for side, root in roots.items()
    }
    result.digests = _hash_files(roots, present, "hashing the base's files")
    for side, root in roots.items():
        for name, record in recorded.items():
            digest = result.digests[side].get(name)
            if digest is None:
                result.findings.append(Finding("is missing", str(root / name)))
            elif digest != record.sha256:
                what = f"is not the file that {MANIFEST} records"
                result.findings.append(Finding(what, str(root / name)))
    for name in () if is_adapter else list_base_files(folder):
        if name not in recorded and is_model_defining(name):
            result.findings.append(Finding("was added to the base's files", str(folder / name)))
    _check_tensors([*roots.values()], result)
    _check_inserted(folder, base or folder, manifest, result)
    return result


def check_foreign_checkpoint(folder: Path, base: Path) -> StaticResult:
    """Compares any checkpoint with `base`: tensors, in whatever files, tokenizer and generation
    settings.

    A changed config.json is only noted: the grid measures its effect. Raises OtterError for a
    folder that is not a safetensors checkpoint.
    """
    checkpoint, base_checkpoint = Checkpoint.open(folder), Checkpoint.open(base)
    result = StaticResult(tensors=len(base_checkpoint.tensors))
    wide = is_wide_config(checkpoint.config)
    compare = _compare_wide if wide else _compare_tensors
    for tensor, file, what in compare(checkpoint, base_checkpoint):
        result.findings.append(Finding(what, str(folder / file), tensor))
    if wide:
        result.notes.append(
            "a wide export: blocks are compared, zero blocks must be zero bit for bit"
        )
    else:
        added = sorted(checkpoint.tensors.keys() - base_checkpoint.tensors.keys())
        if added:
            result.notes.append(f"{len(added)} tensors are new, the first is {added[0]}")
        for key in _changed_keys(folder / "config.json", base / "config.json"):
            result.notes.append(f"config.json: {key} is not the base's")
    for file in _GENERATION_FILES:
        if (base / file).exists():
            result.files += 1
            result.findings += _file_differences(folder / file, base / file)
    roots = {"folder": folder, "base": base}
    files = {side: list_base_files(root) for side, root in roots.items()}
    result.digests = _hash_files(roots, files, "hashing files")
    return result


def _hash_files(
    roots: Mapping[str, Path], files: Mapping[str, Sequence[str]], label: str
) -> dict[str, dict[str, str]]:
    """SHA-256 of `files` in each root, taken afresh. A file with several hard links is hashed
    once."""
    known: dict[tuple[int, int], str] = {}
    digests: dict[str, dict[str, str]] = {}
    sizes = ((roots[side] / name).stat().st_size for side in roots for name in files[side])
    with progress(sum(sizes), label) as advance:
        for side, root in roots.items():
            digests[side] = {}
            for name in files[side]:
                status = (root / name).stat()
                inode = status.st_dev, status.st_ino
                if inode in known:
                    advance(status.st_size)
                else:
                    known[inode] = sha256_file(root / name, advance)
                digests[side][name] = known[inode]
    return digests


def _check_tensors(roots: list[Path], result: StaticResult) -> None:
    try:
        checkpoints = [Checkpoint.open(root) for root in roots]
    except OtterError as error:
        if result.holds:
            raise
        # The digest has found the damaged file already. This says why no tensor can be named.
        result.notes.append(error.what)
        return
    folder, base = checkpoints[0], checkpoints[-1]
    result.tensors = len(base.tensors)
    for tensor, file, what in _compare_tensors(folder, base):
        result.findings.append(Finding(what, str(folder.path / file), tensor))


def _check_inserted(folder: Path, base: Path, manifest: Manifest, result: StaticResult) -> None:
    entry = str(folder / manifest.inserted.file)
    try:
        manifest.check_tensors(folder)
    except OtterError as error:
        result.findings.append(Finding(error.what.removeprefix(f"{entry} "), entry))
    try:
        files = inserted_files(folder)
        weights = ShardedTensors.open(folder, FILE_STEM)
        plans = manifest.plans(base_shape(Checkpoint.open(base).config))
        planned = {t.name: (plan.config.dtype, t.shape) for plan in plans for t in plan.tensors}
    except OtterError as error:
        if result.holds:
            raise
        result.notes.append(error.what)
        return
    inserted = {name: sha256_file(folder / name) for name in (*files, MANIFEST)}
    result.digests["folder"] = {**result.digests.get("folder", {}), **inserted}
    result.inserted = len(planned)
    for name, what in plan_differences(weights, planned):
        result.findings.append(Finding(what, entry, name))


def _compare_tensors(folder: Checkpoint, base: Checkpoint) -> Iterator[TensorDifference]:
    """Every tensor of `base` that `folder` lacks, or holds with another dtype, shape or bytes."""
    # One file under two names, as by a hard link, needs no comparison.
    shared = {
        name
        for name in base.weight_files
        if (folder.path / name).is_file() and (folder.path / name).samefile(base.path / name)
    }
    with progress(sum(t.nbytes for t in base.tensors.values()), "comparing tensors") as advance:
        for name, expected in base.tensors.items():
            advance(expected.nbytes)
            file = base.file_of[name]
            if file in shared and folder.file_of.get(name) == file:
                continue
            if name not in folder.tensors:
                yield name, file, "is missing"
                continue
            info, file = folder.tensors[name], folder.file_of[name]
            if (info.dtype, info.shape) != (expected.dtype, expected.shape):
                was = f"{expected.dtype} {[*expected.shape]}"
                yield name, file, f"is {info.dtype} {[*info.shape]}, the base's {was}"
                continue
            byte = _first_unequal_byte(folder.read_raw(name), base.read_raw(name))
            if byte is not None:
                element = byte * info.count // max(info.nbytes, 1)
                yield name, file, f"differs from the base's at element {element}"


def _first_unequal_byte(first: memoryview, second: memoryview) -> int | None:
    """The index of the first byte in which two equally long buffers differ, or None."""
    for start in range(0, len(first), _BLOCK):
        a, b = first[start : start + _BLOCK], second[start : start + _BLOCK]
        if a != b:
            unequal = np.frombuffer(a, np.uint8) != np.frombuffer(b, np.uint8)
            return start + int(unequal.argmax())
    return None


def _compare_wide(folder: Checkpoint, base: Checkpoint) -> Iterator[TensorDifference]:
    """Every tensor of `base` that is not the first block of the wide one, bit for bit, and every
    zero block that is not zero. -0.0 counts as not zero: times infinity it is NaN as well."""
    family = base_shape(base.config).family
    embedding, head = f"{family.embedding}.weight", f"{family.head}.weight"
    sources = {name: name for name in base.tensors}
    # Tied embeddings come apart: [E E_z] and [W_U 0].
    sources.setdefault(head, embedding)
    with progress(len(sources), "comparing blocks") as advance:
        for name, source in sources.items():
            advance(1)
            if name not in folder.tensors:
                yield name, base.file_of[source], "is missing"
                continue
            has_zero_block = name != embedding
            for what in _block_differences(folder, base, name, source, has_zero_block):
                yield name, folder.file_of[name], what


def _block_differences(
    folder: Checkpoint, base: Checkpoint, name: str, source: str, has_zero_block: bool
) -> Iterator[str]:
    info, expected = folder.tensors[name], base.tensors[source]
    smaller = any(size < least for size, least in zip(info.shape, expected.shape, strict=False))
    if len(info.shape) != len(expected.shape) or smaller:
        yield f"is {[*info.shape]}, which cannot hold the base's {[*expected.shape]}"
        return
    wide, block = _byte_rows(folder, name), _byte_rows(base, source)
    rows = len(block)
    width = expected.shape[-1] * (info.nbytes // info.count)
    if info.dtype != expected.dtype:
        yield f"is {info.dtype}, the base's {expected.dtype}"
    elif (unequal := wide[:rows, :width] != block).any():
        element = int(unequal.reshape(-1).argmax()) * expected.count // block.size
        yield f"differs from the base's at element {element}"
    if has_zero_block and len(expected.shape) == 2 and (wide[:rows, width:] != 0).any():
        row = int((wide[:rows, width:] != 0).any(-1).argmax())
        yield f"lets the insertion into the base: its zero block is not zero in row {row}"


def _byte_rows(checkpoint: Checkpoint, name: str) -> np.ndarray:
    """The bytes of a tensor, [rows, bytes of a row]. A vector is one row."""
    shape = checkpoint.tensors[name].shape
    rows = shape[0] if len(shape) == 2 else 1
    return np.frombuffer(checkpoint.read_raw(name), np.uint8).reshape(rows, -1)


def _file_differences(path: Path, base: Path) -> Iterator[Finding]:
    """How a file of tokens or generation settings differs from the base's."""
    if not path.exists():
        yield Finding("is missing", str(path))
    elif read_small_file(path) == read_small_file(base):
        return
    elif path.suffix != ".json":
        yield Finding("differs from the base's", str(path))
    else:
        for key in _changed_keys(path, base):
            yield Finding(f"has another {key} than the base's", str(path))


def _changed_keys(path: Path, base: Path) -> list[str]:
    """Top-level keys of two JSON files whose values differ."""
    values, expected = read_json_object(path), read_json_object(base)
    keys = sorted((values.keys() | expected.keys()) - _IGNORED_KEYS)
    return [key for key in keys if values.get(key) != expected.get(key)]
