"""Tensors on disk against a base's, by name and byte. No torch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.core.console import progress

_BLOCK = 16 * 2**20

# Tensor, its file in the folder, what is wrong with it there.
Moved = tuple[str, str, str]


def compare_tensors(folder: Checkpoint, base: Checkpoint) -> Iterator[Moved]:
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
