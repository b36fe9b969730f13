"""Static comparison of a wide export with its base: of [[W, W^h], [0, W^z]] (METHOD, 2) the first
block is the base's, the second must be zero by its bits. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.core.console import progress
from otter_cli.families import base_shape
from otter_cli.verification.tensors import Moved


def is_wide(config: dict[str, Any]) -> bool:
    return "otter_base_hidden" in config


def compare_wide(folder: Checkpoint, base: Checkpoint) -> Iterator[Moved]:
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
            for what in _departures(folder, base, name, source, reads=name != embedding):
                yield name, folder.file_of[name], what


def _departures(
    folder: Checkpoint, base: Checkpoint, name: str, source: str, *, reads: bool
) -> Iterator[str]:
    info, was = folder.tensors[name], base.tensors[source]
    if len(info.shape) != len(was.shape) or any(map(int.__lt__, info.shape, was.shape)):
        yield f"is {[*info.shape]}, which cannot hold the base's {[*was.shape]}"
        return
    wide, plain = _bytes(folder, name), _bytes(base, source)
    rows = len(plain)
    width = was.shape[-1] * (info.nbytes // info.count)
    if info.dtype != was.dtype:
        yield f"is {info.dtype}, the base's {was.dtype}"
    elif (moved := wide[:rows, :width] != plain).any():
        yield f"differs from the base's at {_element(moved, plain, was.shape)}"
    if reads and len(was.shape) == 2 and (filled := wide[:rows, width:] != 0).any():
        row = int(filled.any(-1).argmax())
        yield f"lets the insertion into the base: its zero block is not zero in row {row}"


def _bytes(checkpoint: Checkpoint, name: str) -> Any:
    """[rows, bytes of a row]; of a vector, one row."""
    info = checkpoint.tensors[name]
    rows = info.shape[0] if len(info.shape) == 2 else 1
    return np.frombuffer(checkpoint.read_raw(name), np.uint8).reshape(rows, -1)


def _element(moved: Any, plain: Any, shape: tuple[int, ...]) -> str:
    first = int(moved.reshape(-1).argmax())
    return f"element {first * int(np.prod(shape)) // plain.size}"
