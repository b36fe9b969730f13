"""The files that make up one GGUF model: a single file, llama.cpp's split files, or raw pieces."""

from __future__ import annotations

import re
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from otter_cli.checkpoint.folder import GGUF_MAGIC
from otter_cli.checkpoint.gguf.header import GgufHeader, read_gguf_header
from otter_cli.core.errors import OtterError, changed_while_read

_SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_PIECE = re.compile(r"(.+\.gguf)\.part(\d+)")
_CHUNK_BYTES = 8 * 2**20


@dataclass(frozen=True)
class GgufParts:
    """The files in order. Split files have a header each, pieces share a single one."""

    files: tuple[Path, ...]
    layout: Literal["single", "split", "pieces"]


def find_gguf_parts(source: Path) -> GgufParts:
    """All files of the model that `source` belongs to. Raises OtterError where one is missing."""
    if not source.exists():
        raise OtterError(f"{source} does not exist", hint="check the path")
    if source.is_dir():
        source = _only_model(source)
    if split := _SPLIT.fullmatch(source.name):
        count = int(split[3])
        names = [f"{split[1]}-{number:05d}-of-{split[3]}.gguf" for number in range(1, count + 1)]
        return GgufParts(_require_all(source, names), "split")
    if piece := _PIECE.fullmatch(source.name):
        return GgufParts(_pieces(source, piece[1], len(piece[2])), "pieces")
    return GgufParts((source,), "single")


def _only_model(folder: Path) -> Path:
    """The only GGUF model in a folder, or the first of its parts."""
    first: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if match := _SPLIT.fullmatch(file.name) or _PIECE.fullmatch(file.name):
            first.setdefault(match[1], file)
        elif file.suffix == ".gguf":
            first[file.name] = file
    if len(first) != 1:
        models = ", ".join(file.name for file in first.values()) or "none"
        raise OtterError(
            f"{folder} is a folder, and it does not hold exactly one GGUF model ({models})",
            hint="give the .gguf file itself",
        )
    return next(iter(first.values()))


def _require_all(source: Path, names: list[str]) -> tuple[Path, ...]:
    files = tuple(source.with_name(name) for name in names)
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise OtterError(
            f"{source} is one of {len(files)} parts, and {', '.join(missing) or 'it'} is missing",
            hint="fetch all of them into one folder, and give any one of them",
        )
    return files


def _pieces(source: Path, stem: str, width: int) -> tuple[Path, ...]:
    """The pieces of `stem`. Their names do not say which is the last, but the header shows whether
    the file is cut off."""
    numbers = sorted(
        int(match[2])
        for file in source.parent.iterdir()
        if (match := _PIECE.fullmatch(file.name)) and match[1] == stem
    )
    names = {number: f"{stem}.part{number:0{width}d}" for number in range(max(numbers) + 1)}
    # Pieces may be numbered from 1. Then piece 1 starts as a GGUF file does.
    if 1 in numbers and not source.with_name(names[0]).exists():
        with open(source.with_name(names[1]), "rb") as file:
            if file.read(4) == GGUF_MAGIC:
                del names[0]
    return _require_all(source, list(names.values()))


def read_gguf_headers(parts: GgufParts) -> list[GgufHeader]:
    """The header of every file that has one. Pieces have none until they are joined."""
    if parts.layout == "pieces":
        return []
    headers = [read_gguf_header(file) for file in parts.files]
    for number, header in enumerate(headers):
        index = header.metadata.get("split.no", 0)
        count = header.metadata.get("split.count", 1) or 1
        if (index, count) != (number, len(headers)):
            raise OtterError(
                f"{header.path} is part {index + 1} of {count} by its header, and "
                f"{number + 1} of {len(headers)} by its name",
                hint="give all parts the names they came with: NAME-00001-of-00003.gguf and so on",
            )
    return headers


def join_parts(parts: GgufParts, headers: list[GgufHeader], target: Path) -> None:
    """Write all parts as one GGUF file."""
    with open(target, "xb") as out:
        if parts.layout == "pieces":
            for file in parts.files:
                with open(file, "rb") as source:
                    shutil.copyfileobj(source, out, _CHUNK_BYTES)
            return
        write_gguf_header(out, headers[0], tuple(headers[0].entries), headers)
        for header in headers:
            with open(header.path, "rb") as source:
                for tensor in header.tensors.values():
                    out.write(b"\0" * (-out.tell() % headers[0].alignment))
                    source.seek(tensor.start)
                    _copy_bytes(source, out, tensor.nbytes)


def _copy_bytes(source: BinaryIO, out: BinaryIO, count: int) -> None:
    while count:
        chunk = source.read(min(count, _CHUNK_BYTES))
        if not chunk:
            raise changed_while_read(source.name)
        out.write(chunk)
        count -= len(chunk)


def write_gguf_header(
    out: BinaryIO, first: GgufHeader, keys: tuple[str, ...], headers: list[GgufHeader]
) -> int:
    """A header with the entries `keys` of `first` and the tensors of all `headers`, in order.

    Returns the size that the file will have with all tensors.
    """
    tensors = [tensor for header in headers for tensor in header.tensors.values()]
    out.write(GGUF_MAGIC + struct.pack("<IQQ", first.version, len(tensors), len(keys)))
    with open(first.path, "rb") as source:
        for key in keys:
            start, end = first.entries[key]
            source.seek(start)
            out.write(source.read(end - start))
    offset = 0
    for tensor in tensors:
        name = tensor.name.encode()
        shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape))
        out.write(struct.pack("<Q", len(name)) + name + shape)
        out.write(struct.pack("<IQ", tensor.type_id, offset))
        end = offset + tensor.nbytes
        offset = end + -end % first.alignment
    out.write(b"\0" * (-out.tell() % first.alignment))
    return out.tell() + offset
