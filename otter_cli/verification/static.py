"""Static proof of a graft: its files and tensors as they lie on disk. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.checkpoint.listing import base_files, decides
from otter_cli.checkpoint.tensor_info import TensorInfo
from otter_cli.checkpoint.weights import Weights
from otter_cli.core.console import progress
from otter_cli.core.digests import sha256_file
from otter_cli.core.errors import OtterError
from otter_cli.families import base_shape
from otter_cli.insertion import MANIFEST, Manifest, Plan
from otter_cli.insertion.storage import STEM, stored_files
from otter_cli.verification.findings import Digests, Finding, Static
from otter_cli.verification.tensors import compare_tensors


def check_graft(folder: Path, base: Path | None) -> Static:
    """A graft, or an adapter alone, against the digests in its otter.json and against `base`.

    Raises OtterError where that is nothing: no manifest, or an adapter without a base.
    """
    manifest = Manifest.read(folder)
    found = Static(files=len(manifest.base.files))
    whole = (folder / "config.json").exists()
    roots = {"folder": folder} if whole else {}
    roots |= {"base": base} if base is not None else {}
    if not roots:
        raise OtterError(f"{folder} is an adapter alone", hint="give its base: --base BASE")
    total = len(roots) * sum(record.bytes for record in manifest.base.files.values())
    with progress(total, "hashing the base's files") as advance:
        digests = Digests(advance)
        for name, root in roots.items():
            found.digests[name] = _check_files(root, manifest, digests, found.findings)
    if whole:
        found.findings += _added(folder, manifest)
    _check_tensors([*roots.values()], found)
    _check_inserted(folder, base or folder, manifest, found)
    return found


def _check_files(
    root: Path, manifest: Manifest, digests: Digests, findings: list[Finding]
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


def _added(folder: Path, manifest: Manifest) -> Iterator[Finding]:
    for name in base_files(folder):
        if name not in manifest.base.files and decides(name):
            yield Finding("was added to the base's files", str(folder / name))


def _check_tensors(roots: list[Path], found: Static) -> None:
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


def _check_inserted(folder: Path, base: Path, manifest: Manifest, found: Static) -> None:
    entry = str(folder / manifest.inserted.file)
    try:
        manifest.check_tensors(folder)
    except OtterError as error:
        found.findings.append(Finding(error.what.removeprefix(f"{entry} "), entry))
    try:
        files = stored_files(folder)
        weights = Weights.open(folder, STEM)
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
    for name, what in _departures(weights.tensors, expected):
        found.findings.append(Finding(what, entry, name))


def _departures(
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
