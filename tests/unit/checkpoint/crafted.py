"""Safetensors files and checkpoint folders written by hand, with any fault."""

import json
import re
from pathlib import Path
from typing import Any

from otter_cli.core.errors import OtterError

Entry = dict[str, Any]

F32_BYTES = 4


def entry(dtype: str, shape: Any, start: Any, end: Any) -> Entry:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def craft(
    path: Path, header: bytes | dict[str, Any], data: bytes = b"", *, length: int | None = None
) -> Path:
    """A file of `header` and `data`; `length` is the header's length that the file claims.

    Tables are padded as the library pads them, so that the data is aligned.
    """
    text = header if isinstance(header, bytes) else padded(header)
    path.parent.mkdir(parents=True, exist_ok=True)
    claimed = len(text) if length is None else length
    path.write_bytes(claimed.to_bytes(8, "little") + text + data)
    return path


def padded(fields: dict[str, Any]) -> bytes:
    text = json.dumps(fields).encode()
    return text + b" " * (-len(text) % 8)


def floats(path: Path, *names: str) -> Path:
    """A sound file of two-element F32 vectors."""
    size = 2 * F32_BYTES
    header = {name: entry("F32", [2], i * size, (i + 1) * size) for i, name in enumerate(names)}
    return craft(path, header, bytes(len(names) * size))


def sharded(folder: Path, placed: dict[str, str]) -> Path:
    """A sound checkpoint folder. `placed` maps tensors to shards."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    for shard in set(placed.values()):
        floats(folder / shard, *[name for name in placed if placed[name] == shard])
    write_index(folder, placed)
    return folder


def write_index(folder: Path, placed: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))


def single(folder: Path, *names: str) -> Path:
    """A sound checkpoint folder of one file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    floats(folder / "model.safetensors", *names)
    return folder


def check_error(error: OtterError, where: Path, what: str) -> None:
    """An error that a user can act on, and a terminal can show: what, where, hint."""
    assert re.search(what, error.what), error.what
    assert str(where) in error.what
    assert error.hint
    shown = error.what + error.hint
    assert shown.isprintable() and shown.isascii(), ascii(shown)
    assert len(shown) < 700
