"""The static level: a graft's files and tensors as they lie on disk. No torch.

Every file of the base is hashed against otter.json, and every tensor is compared with the base's,
byte for byte; inserted tensors must be those of the plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from otter_cli.checkpoint.folder import MANIFEST, Checkpoint, is_model_defining, list_base_files
from otter_cli.checkpoint.safetensors_reader import ShardedTensors, TensorInfo
from otter_cli.core.console import Advance, progress
from otter_cli.core.digests import sha256_file
from otter_cli.core.errors import OtterError
from otter_cli.families.shape import base_shape
from otter_cli.graft.manifest import Manifest
from otter_cli.graft.plan import Plan
from otter_cli.graft.storage import FILE_STEM, inserted_files


@dataclass(frozen=True)
class Finding:
    """Something on disk that is not as it should be; of a tensor, in which file it is."""

    what: str
    file: str
    tensor: str | None = None

    def __str__(self) -> str:
        tensor = f"tensor {self.tensor} in " if self.tensor else ""
        return f"{tensor}{self.file} {self.what}"


@dataclass
class StaticResult:
    """How many files and tensors of the base's, and how many inserted ones, were compared.

    `findings` refute; `notes` only tell. `digests`: of every file of "folder"
    and "base".
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


class FileHasher:
    """Digests taken afresh, once for all names of one file: hard links are hashed once."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._known: dict[tuple[int, int], str] = {}

    def sha256(self, path: Path) -> str:
        status = path.stat()
        key = status.st_dev, status.st_ino
        if key in self._known:
            self._advance(status.st_size)
        else:
            self._known[key] = sha256_file(path, self._advance)
        return self._known[key]


_BLOCK = 16 * 2**20

# Tensor, its file in the folder, what is wrong with it there.
TensorDifference = tuple[str, str, str]


def compare_tensors(folder: Checkpoint, base: Checkpoint) -> Iterator[TensorDifference]:
    """Every tensor of `base` that `folder` lacks or holds with other dtype, shape or bytes."""
    same_files = {name for name in base.weight_files if _same_file(folder, base, name)}
    total = sum(info.nbytes for info in base.tensors.values())
    with progress(total, "comparing tensors") as advance:
        for name, info in base.tensors.items():
            advance(info.nbytes)
            file = base.file_of[name]
            if file in same_files and folder.file_of.get(name) == file:
                continue
            if name not in folder.tensors:
                yield name, file, "is missing"
                continue
            mine = folder.tensors[name]
            if (mine.dtype, mine.shape) != (info.dtype, info.shape):
                is_, was = f"{mine.dtype} {[*mine.shape]}", f"{info.dtype} {[*info.shape]}"
                yield name, folder.file_of[name], f"is {is_}, the base's {was}"
            elif (first := first_difference(folder.read_raw(name), base.read_raw(name))) >= 0:
                element = first * info.count // max(info.nbytes, 1)
                yield name, folder.file_of[name], f"differs from the base's at element {element}"


def first_difference(mine: memoryview, theirs: memoryview) -> int:
    """The first byte in which two equally long buffers differ, or -1."""
    for start in range(0, len(mine), _BLOCK):
        a, b = mine[start : start + _BLOCK], theirs[start : start + _BLOCK]
        if a != b:
            unequal = np.frombuffer(a, np.uint8) != np.frombuffer(b, np.uint8)
            return start + int(unequal.argmax())
    return -1


def _same_file(folder: Checkpoint, base: Checkpoint, name: str) -> bool:
    """Whether both hold the very same file, as hard links do."""
    mine = folder.path / name
    return mine.is_file() and mine.samefile(base.path / name)


def check_graft(folder: Path, base: Path | None) -> StaticResult:
    """A graft, or an adapter alone, against the digests in its otter.json and against `base`.

    Raises OtterError where that is nothing: no manifest, or an adapter without a base.
    """
    manifest = Manifest.read(folder)
    found = StaticResult(files=len(manifest.base.files))
    whole = (folder / "config.json").exists()
    roots = {"folder": folder} if whole else {}
    roots |= {"base": base} if base is not None else {}
    if not roots:
        raise OtterError(f"{folder} is an adapter alone", hint="give its base: --base BASE")
    total = len(roots) * sum(record.bytes for record in manifest.base.files.values())
    with progress(total, "hashing the base's files") as advance:
        digests = FileHasher(advance)
        for name, root in roots.items():
            found.digests[name] = _check_files(root, manifest, digests, found.findings)
    if whole:
        found.findings += _added_files(folder, manifest)
    _check_tensors([*roots.values()], found)
    _check_inserted(folder, base or folder, manifest, found)
    return found


def _check_files(
    root: Path, manifest: Manifest, digests: FileHasher, findings: list[Finding]
) -> dict[str, str]:
    """Digests of the base's files in `root`; adds what the manifest does not agree with."""
    taken = {}
    for name, record in manifest.base.files.items():
        path = root / name
        if not path.is_file():
            findings.append(Finding("is missing", str(path)))
            continue
        taken[name] = digests.sha256(path)
        if taken[name] != record.sha256:
            findings.append(Finding(f"is not the file that {MANIFEST} records", str(path)))
    return taken


def _added_files(folder: Path, manifest: Manifest) -> Iterator[Finding]:
    for name in list_base_files(folder):
        if name not in manifest.base.files and is_model_defining(name):
            yield Finding("was added to the base's files", str(folder / name))


def _check_tensors(roots: list[Path], found: StaticResult) -> None:
    try:
        checkpoints = [Checkpoint.open(root) for root in roots]
    except OtterError as error:
        if found.holds:
            raise
        # The damaged file is found by its digest already; this says why no tensor can be named.
        found.notes.append(error.what)
        return
    ours, theirs = checkpoints[0], checkpoints[-1]
    found.tensors = len(theirs.tensors)
    for tensor, file, what in compare_tensors(ours, theirs):
        found.findings.append(Finding(what, str(ours.path / file), tensor))


def _check_inserted(folder: Path, base: Path, manifest: Manifest, found: StaticResult) -> None:
    entry = str(folder / manifest.inserted.file)
    try:
        manifest.check_tensors(folder)
    except OtterError as error:
        found.findings.append(Finding(error.what.removeprefix(f"{entry} "), entry))
    try:
        files = inserted_files(folder)
        weights = ShardedTensors.open(folder, FILE_STEM)
        shape = base_shape(Checkpoint.open(base).config)
        slots = [(c, slot) for c in manifest.insertions for slot in Plan(c, shape).slots]
    except OtterError as error:
        if found.holds:
            raise
        found.notes.append(error.what)
        return
    ours = {name: sha256_file(folder / name) for name in (*files, MANIFEST)}
    found.digests["folder"] = {**found.digests.get("folder", {}), **ours}
    expected = {slot.name: (config.dtype, slot.shape) for config, slot in slots}
    found.inserted = len(expected)
    for name, what in _plan_differences(weights.tensors, expected):
        found.findings.append(Finding(what, entry, name))


def _plan_differences(
    tensors: Mapping[str, TensorInfo], expected: Mapping[str, tuple[str, tuple[int, ...]]]
) -> Iterator[tuple[str, str]]:
    """Tensors that are not as the plan has them: every one of its, and no other."""
    for name in sorted(tensors.keys() | expected.keys()):
        if name not in tensors:
            yield name, "is missing"
        elif name not in expected:
            yield name, "is none that the plan has"
        elif (tensors[name].dtype, tensors[name].shape) != expected[name]:
            dtype, form = expected[name]
            info = tensors[name]
            yield name, f"is {info.dtype} {[*info.shape]}, planned {dtype} {[*form]}"
