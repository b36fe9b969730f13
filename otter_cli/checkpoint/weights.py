"""A set of tensors on disk: one file, or shards and the index that names them."""

from pathlib import Path
from typing import Any

from otter_cli.checkpoint.dtypes import Array
from otter_cli.checkpoint.links import resolve_inside
from otter_cli.checkpoint.strict_json import is_plain, read_object, shown
from otter_cli.checkpoint.tensor_file import TensorFile
from otter_cli.checkpoint.tensor_info import TensorInfo
from otter_cli.core.errors import OtterError

_REWRITE = "fetch the folder again, or save the model again with its index"


class Weights:
    """The tensors of `files`, found by name; each tensor is in exactly one of them."""

    def __init__(self, files: dict[str, TensorFile]) -> None:
        self.files = files
        self.tensors: dict[str, TensorInfo] = {}
        self.file_of: dict[str, str] = {}
        for file, content in files.items():
            for name, info in content.header.tensors.items():
                if name in self.file_of:
                    raise OtterError(
                        f"{content.path.parent}: tensor {shown(name)} is in {self.file_of[name]} "
                        f"and in {file}",
                        hint=_REWRITE,
                    )
                self.tensors[name] = info
                self.file_of[name] = file

    @classmethod
    def open(cls, folder: Path, stem: str) -> "Weights":
        """`stem`.safetensors, or the shards of `stem`.safetensors.index.json, in `folder`."""
        single = f"{stem}.safetensors"
        if (folder / single).exists():
            resolve_inside(folder, single)
            return cls({single: TensorFile(folder / single)})
        index = folder / f"{single}.index.json"
        if not index.exists():
            raise OtterError(
                f"{folder} has no {single}", hint="the folder is incomplete: fetch it again"
            )
        placed = read_index(index)
        shards = sorted(set(placed.values()))
        for shard in shards:
            resolve_inside(folder, shard)
        weights = cls({shard: TensorFile(folder / shard) for shard in shards})
        _check_index(placed, weights.file_of, index)
        return weights

    def read(self, name: str, *, rows: Array | None = None, columns: Array | None = None) -> Array:
        """See TensorFile.read."""
        return self.files[self.file_of[name]].read(name, rows=rows, columns=columns)

    def read_raw(self, name: str) -> memoryview:
        """See TensorFile.read_raw."""
        return self.files[self.file_of[name]].read_raw(name)


def read_index(path: Path) -> dict[str, str]:
    """The index's table from tensor names to shard names."""
    placed: Any = read_object(path).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise OtterError(f"{path}: has no weight_map", hint=_REWRITE)
    for name, shard in placed.items():
        if not is_plain(name):
            raise OtterError(f"{path}: {shown(name)} is no tensor name", hint=_REWRITE)
        if not isinstance(shard, str) or not shard.endswith(".safetensors"):
            raise OtterError(
                f"{path}: tensor {shown(name)} is said to be in {shown(str(shard))}, "
                "which is no safetensors file",
                hint=_REWRITE,
            )
    return placed


def _check_index(placed: dict[str, str], found: dict[str, str], index: Path) -> None:
    for name, shard in placed.items():
        if found.get(name) != shard:
            raise OtterError(
                f"{index}: tensor {shown(name)} is not in {shown(shard)}", hint=_REWRITE
            )
    for name, shard in found.items():
        if name not in placed:
            raise OtterError(
                f"{index}: lacks tensor {shown(name)}, which is in {shown(shard)}", hint=_REWRITE
            )
