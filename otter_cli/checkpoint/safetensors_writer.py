"""Safetensors files, written tensor by tensor.

The peak memory is one tensor, whatever the size of the file. A large set of tensors is split into
shards with an index that holds their digests.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypedDict

from otter_cli.checkpoint.dtypes import DTYPE_BITS, Array, encode
from otter_cli.core.atomic import staged_file, write_json
from otter_cli.core.digests import sha256_file
from otter_cli.core.errors import OtterError

MAX_SHARD_BYTES = 5 * 10**9  # the size of transformers' shards

_CHUNK_ELEMENTS = 2**21


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Dtype (by its safetensors name) and shape of a tensor that is still to be computed."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * DTYPE_BITS[self.dtype] // 8


class FileDigest(TypedDict):
    """A file's size and SHA-256, in the form of a manifest."""

    bytes: int
    sha256: str


ProduceTensor = Callable[[str], Array]


def write_tensors(
    path: str | Path,
    tensors: Mapping[str, TensorSpec],
    produce: ProduceTensor,
    metadata: Mapping[str, str] | None = None,
) -> FileDigest:
    """Write the result of `produce(name)` for every tensor, converted to its spec's dtype.

    The file appears whole or not at all. Raises OtterError where a result has another shape.
    """
    digest, size = hashlib.sha256(), 0
    with staged_file(path) as file:
        for chunk in _file_chunks(tensors, produce, metadata):
            digest.update(chunk)
            size += file.write(chunk)
            del chunk  # it keeps its tensor in memory, and the next one is computed now
    return FileDigest(bytes=size, sha256=digest.hexdigest())


def write_sharded(
    folder: str | Path,
    stem: str,
    tensors: Mapping[str, TensorSpec],
    produce: ProduceTensor,
    metadata: Mapping[str, str] | None = None,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> dict[str, FileDigest]:
    """Write `stem`.safetensors, or shards and an index where it would be too large.

    Returns the digest of every file, by name, the index last. The index contains the shards'
    digests, so its own digest covers them.
    """
    folder = Path(folder)
    shards = _split_into_shards(tensors, max_shard_bytes)
    if len(shards) == 1:
        name = f"{stem}.safetensors"
        return {name: write_tensors(folder / name, tensors, produce, metadata)}
    records: dict[str, FileDigest] = {}
    shard_of: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        records[name] = write_tensors(folder / name, shard, produce, metadata)
        shard_of |= dict.fromkeys(shard, name)
    digests = {name: record["sha256"] for name, record in records.items()}
    total = sum(spec.nbytes for spec in tensors.values())
    index = folder / f"{stem}.safetensors.index.json"
    metadata_json = {"total_size": total, "sha256": digests}
    write_json(index, {"metadata": metadata_json, "weight_map": shard_of})
    records[index.name] = FileDigest(bytes=index.stat().st_size, sha256=sha256_file(index))
    return records


def _file_chunks(
    tensors: Mapping[str, TensorSpec],
    produce: ProduceTensor,
    metadata: Mapping[str, str] | None,
) -> Iterator[bytes | memoryview]:
    # The widest elements come first, so that every tensor starts at a multiple of its width.
    order = sorted(tensors, key=lambda name: -DTYPE_BITS[tensors[name].dtype])
    fields: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        start, end = end, end + tensors[name].nbytes
        shape = list(tensors[name].shape)
        fields[name] = {"dtype": tensors[name].dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in order:
        yield from _encoded_chunks(name, tensors[name], produce(name))


def _encoded_chunks(name: str, spec: TensorSpec, values: Array) -> Iterator[memoryview]:
    """The tensor's bytes, converted piece by piece, so that no second copy of it exists."""
    if values.shape != spec.shape:
        raise OtterError(
            f"tensor {name}: made with shape {list(values.shape)}, planned as {list(spec.shape)}"
        )
    import numpy as np

    flat = values.reshape(-1)
    for start in range(0, flat.size, _CHUNK_ELEMENTS):
        piece = encode(flat[start : start + _CHUNK_ELEMENTS], spec.dtype)
        yield piece.view(np.uint8).data


def _split_into_shards(
    tensors: Mapping[str, TensorSpec], limit: int
) -> list[dict[str, TensorSpec]]:
    """Shards filled in order. A tensor over the limit has a shard of its own."""
    shards: list[dict[str, TensorSpec]] = [{}]
    filled = 0
    for name, spec in tensors.items():
        if shards[-1] and filled + spec.nbytes > limit:
            shards.append({})
            filled = 0
        shards[-1][name] = spec
        filled += spec.nbytes
    return shards
