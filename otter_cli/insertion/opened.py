"""Opening a graft for use: its record, its inserted tensors and its base are what they were.

Whatever runs, trains or exports a graft opens it here, so that a base that changed under it is
noticed before any work is done on it.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from otter_cli.checkpoint.digest_cache import DigestCache
from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.checkpoint.links import resolve_inside
from otter_cli.checkpoint.listing import base_files, decides, is_weights
from otter_cli.core.console import progress, warn
from otter_cli.core.digests import Advance, sha256_file
from otter_cli.core.errors import OtterError, from_os_error
from otter_cli.core.provenance import base_changes, note_base_change, restore_base_changes
from otter_cli.families import base_shape
from otter_cli.insertion.manifest import Manifest
from otter_cli.insertion.plan import Plan
from otter_cli.insertion.storage import open_stored

# "ignore" is for a caller that compares the files itself, as verification does.
IfChanged = Literal["refuse", "warn", "ignore"]

_accepted = False


@contextmanager
def changed_base_accepted(accepted: bool = True) -> Iterator[None]:
    """Inside, a base that changed is warned about and recorded, where it is otherwise refused."""
    global _accepted
    before, noted = _accepted, base_changes()
    _accepted = accepted
    try:
        yield
    finally:
        _accepted = before
        restore_base_changes(noted)


def open_graft(
    folder: Path, *, base: Path | None = None, if_changed: IfChanged = "refuse"
) -> Manifest:
    """The record of a graft that is about to be used. `base`: of an adapter alone.

    Raises OtterError where the inserted tensors or the base are not the recorded ones.
    """
    manifest, root = Manifest.read(folder), base or folder
    _refuse_no_base(root, folder, manifest)
    # Headers first: sizes that no tensor has are refused before anything is built or hashed.
    shape = base_shape(Checkpoint.open(root).config)
    if if_changed != "ignore":
        check_base_files(folder, manifest, base=base, if_changed=if_changed)
    open_stored(folder, [Plan(config, shape) for config in manifest.insertions])
    manifest.check_tensors(folder)
    return manifest


def check_base_files(
    folder: Path,
    manifest: Manifest,
    *,
    base: Path | None = None,
    if_changed: IfChanged = "refuse",
    written_anew: Container[str] = (),
) -> None:
    """Compares every file of the base that decides what it says with its digest in otter.json.
    `written_anew`: names that an export has in another form.

    Digests of weights come from the cache, by device, inode, size and time; all other files are
    read each time.
    """
    root = base or folder
    for name, digest, what in _changes(root, manifest):
        if name in written_anew:
            continue
        path = root / name
        if base is not None and if_changed == "refuse" and not _accepted:
            raise OtterError(
                f"{path} is not the base of this insertion: {what}",
                hint=f"the insertion was made for {manifest.base.source}; "
                "--base-changed-ok uses this one all the same",
            )
        if if_changed == "refuse" and not _accepted:
            raise OtterError(
                f"{path}: {what}; it is not the base that was grafted",
                hint="restore the file, or graft the changed base anew; --base-changed-ok uses it "
                "as it is, and results then say so",
            )
        if str(path) not in base_changes():
            warn(
                f"{path}: {what}; signals were trained on another base, and their numbers may "
                "mean nothing"
            )
        note_base_change(str(path), digest)


def _refuse_no_base(root: Path, folder: Path, manifest: Manifest) -> None:
    if not root.is_dir():
        raise OtterError(f"{root} does not exist", hint="give the folder of the base")
    if root == folder and manifest.base.files and not (root / "config.json").exists():
        raise OtterError(
            f"{folder} is an adapter alone: it has no config.json",
            hint=f"give its base, {manifest.base.source}: --base BASE where the verb takes it, or "
            f"otter attach {folder} BASE OUT",
        )


def _changes(root: Path, manifest: Manifest) -> Iterator[tuple[str, str, str]]:
    """Name, digest now, and what is wrong. What needs no reading of gigabytes comes first."""
    recorded = {name: r for name, r in manifest.base.files.items() if decides(name)}
    later = []
    for name, record in recorded.items():
        path = root / name
        if not path.is_file():
            yield name, "", "the file is missing"
        elif path.stat().st_size != record.bytes:
            yield name, f"{path.stat().st_size} bytes", "its size differs from the recorded one"
        else:
            later.append(name)
    for name in base_files(root) if recorded else ():
        if name not in manifest.base.files and decides(name):
            yield name, "added", "the file was added, and decides on what the base says"
    cache = DigestCache()
    later.sort(key=is_weights)
    with progress(sum(recorded[name].bytes for name in later), "digests of the base") as advance:
        for name in later:
            digest = _sha256(root, name, cache, advance)
            if digest != recorded[name].sha256:
                yield name, digest, "its digest differs from the recorded one"


def _sha256(root: Path, name: str, cache: DigestCache, advance: Advance) -> str:
    path = resolve_inside(root, name)
    if is_weights(name):
        return cache.sha256(path, advance)
    try:
        return sha256_file(path, advance)
    except OSError as error:
        raise from_os_error(error, f"read {path}") from error
