"""A grafted folder in use: opened with all checks, or updated with new tensors after training.

Everything that runs, trains or exports a graft opens it with `open_graft`, so a changed base is
noticed before any work is done. `update_tensors` leaves a valid folder at whatever moment the
process dies.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from otter_cli.checkpoint.dtypes import Array
from otter_cli.checkpoint.folder import Checkpoint, is_model_defining, is_weights, list_base_files
from otter_cli.checkpoint.safetensors_writer import MAX_SHARD_BYTES
from otter_cli.core.console import Advance, progress, warn
from otter_cli.core.digests import DigestCache, sha256_file
from otter_cli.core.errors import OtterError, from_os_error
from otter_cli.core.provenance import base_changes, note_base_change, restore_base_changes
from otter_cli.core.strict_files import resolve_inside
from otter_cli.families.shape import base_shape
from otter_cli.graft.manifest import Manifest
from otter_cli.graft.plan import Plan
from otter_cli.graft.storage import (
    InsertedRecord,
    inserted_files,
    open_inserted_tensors,
    put_in_place,
    remove_unused_files,
    spare_stem,
    write_inserted_tensors,
)

# "ignore" is for a caller that compares the files itself, such as verification.
IfChanged = Literal["refuse", "warn", "ignore"]

_changed_base_is_accepted = False


@contextmanager
def accept_changed_base() -> Iterator[None]:
    """Inside, a changed base is not refused: it is warned of, and recorded in every provenance."""
    global _changed_base_is_accepted
    before, noted = _changed_base_is_accepted, base_changes()
    _changed_base_is_accepted = True
    try:
        yield
    finally:
        _changed_base_is_accepted = before
        restore_base_changes(noted)


def open_graft(
    folder: Path, *, base: Path | None = None, if_changed: IfChanged = "refuse"
) -> Manifest:
    """The manifest of a graft that is about to be used. `base` is the base of an adapter alone.

    Raises OtterError where the inserted tensors or the base are not the recorded ones.
    """
    manifest, root = Manifest.read(folder), base or folder
    _refuse_missing_base(root, folder, manifest)
    # Headers come first: impossible sizes are refused before anything is built or hashed.
    shape = base_shape(Checkpoint.open(root).config)
    if if_changed != "ignore":
        check_base_files(folder, manifest, base=base, if_changed=if_changed)
    open_inserted_tensors(folder, manifest.plans(shape))
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
    """Compares every file that defines the base's model or tokenizer with its digest in otter.json.

    `written_anew` names files that an export rewrites, which are not compared. Digests of weights
    come from a cache keyed by device, inode, size and time. All other files are read each time.
    """
    root = base or folder
    for name, digest, what in _changed_files(root, manifest):
        if name in written_anew:
            continue
        path = root / name
        refuse = if_changed == "refuse" and not _changed_base_is_accepted
        if refuse and base is not None:
            raise OtterError(
                f"{path} is not the base of this insertion: {what}",
                hint=f"the insertion was made for {manifest.base.source}; "
                "--base-changed-ok uses this one all the same",
            )
        if refuse:
            raise OtterError(
                f"{path}: {what}; it is not the base that was grafted",
                hint="restore the file, or graft the changed base again; --base-changed-ok uses it "
                "as it is, and results then say so",
            )
        if str(path) not in base_changes():
            warn(
                f"{path}: {what}; signals were trained on another base, so their values may "
                "mean nothing"
            )
        note_base_change(str(path), digest)


def _refuse_missing_base(root: Path, folder: Path, manifest: Manifest) -> None:
    if not root.is_dir():
        raise OtterError(f"{root} does not exist", hint="give the folder of the base")
    if root == folder and manifest.base.files and not (root / "config.json").exists():
        raise OtterError(
            f"{folder} is an adapter alone: it has no config.json",
            hint=f"give its base, {manifest.base.source}: --base BASE where the verb takes it, or "
            f"otter attach {folder} BASE OUT",
        )


def _changed_files(root: Path, manifest: Manifest) -> Iterator[tuple[str, str, str]]:
    """Yields each changed file: name, digest now, what is wrong. Cheap comparisons come first."""
    recorded = {name: r for name, r in manifest.base.files.items() if is_model_defining(name)}
    to_hash = []
    for name, record in recorded.items():
        path = root / name
        if not path.is_file():
            yield name, "", "the file is missing"
        elif path.stat().st_size != record.bytes:
            yield name, f"{path.stat().st_size} bytes", "its size differs from the recorded one"
        else:
            to_hash.append(name)
    for name in list_base_files(root) if recorded else ():
        if name not in manifest.base.files and is_model_defining(name):
            yield name, "added", "the file was added, and it defines the base's model or tokenizer"
    cache = DigestCache()
    to_hash.sort(key=is_weights)
    with progress(sum(recorded[name].bytes for name in to_hash), "digests of the base") as advance:
        for name in to_hash:
            digest = _base_file_digest(root, name, cache, advance)
            if digest != recorded[name].sha256:
                yield name, digest, "its digest differs from the recorded one"


def _base_file_digest(root: Path, name: str, cache: DigestCache, advance: Advance) -> str:
    path = resolve_inside(root, name)
    if is_weights(name):
        return cache.sha256(path, advance)
    try:
        return sha256_file(path, advance)
    except OSError as error:
        raise from_os_error(error, f"read {path}") from error


def update_tensors(
    folder: Path,
    plans: Sequence[Plan],
    manifest: Manifest,
    tensors: Mapping[str, Array],
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Manifest:
    """Replaces the inserted tensors by `tensors` (float32, one for each of the plans') and the
    record.

    Two files cannot be replaced at one instant. So otter.json first accepts both digests, then the
    new tensors are put in place, then only their digest is valid. The folder is valid whenever the
    process dies, and its record never claims more training than the tensors have had.
    """
    new = write_inserted_tensors(
        folder,
        plans,
        tensors.__getitem__,
        stem=spare_stem(folder),
        max_shard_bytes=max_shard_bytes,
    )
    # The file on disk, not the one in otter.json: an earlier run may have died before the rename.
    current = inserted_files(folder)[0]
    both = InsertedRecord(
        file=current, sha256=new.sha256, previous_sha256=sha256_file(folder / current)
    )
    Manifest.read(folder).model_copy(update={"inserted": both}).write(folder)
    inserted = InsertedRecord(file=put_in_place(folder, new.file), sha256=new.sha256)
    manifest = manifest.model_copy(update={"inserted": inserted})
    manifest.write(folder)
    remove_unused_files(folder)
    return manifest
