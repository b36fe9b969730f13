"""The safetensors library reads the written tensors."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from otter_cli.checkpoint.dtypes import Array
from otter_cli.checkpoint.safetensors_reader import ShardedTensors
from otter_cli.checkpoint.safetensors_writer import TensorSpec, write_sharded, write_tensors
from otter_cli.core.errors import OtterError

VALUES = {
    "norm": np.array([0.1, -3e38, np.inf], np.float32),
    "matrix": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4),
    "count": np.array(7, np.int64),
    "mask": np.array([True, False]),
    "nothing": np.zeros((0, 5), np.float32),
}
DTYPES = {"norm": "F32", "matrix": "BF16", "count": "I64", "mask": "BOOL", "nothing": "F16"}
SPECS = {name: TensorSpec(DTYPES[name], values.shape) for name, values in VALUES.items()}


def names(folder: Path) -> list[str]:
    return sorted(child.name for child in folder.iterdir())


def check(found: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(VALUES)
    for name, values in VALUES.items():
        expected = torch.from_numpy(values)
        expected = expected.bfloat16() if DTYPES[name] == "BF16" else expected
        expected = expected.half() if DTYPES[name] == "F16" else expected
        assert found[name].dtype == expected.dtype
        assert torch.equal(found[name], expected)


def test_one_file(tmp_path: Path) -> None:
    path = tmp_path / "otter.safetensors"
    record = write_tensors(path, SPECS, VALUES.__getitem__, {"format": "pt", "by": "ötter"})
    check(safetensors.torch.load_file(path))
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "by": "ötter"}
    content = path.read_bytes()
    assert record == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_the_same_tensors_make_the_same_bytes(tmp_path: Path) -> None:
    first, second = (
        write_tensors(tmp_path / name, SPECS, VALUES.__getitem__) for name in ("a", "b")
    )
    assert first == second


def test_every_tensor_is_aligned(tmp_path: Path) -> None:
    write_tensors(tmp_path / "model.safetensors", SPECS, VALUES.__getitem__)
    weights = ShardedTensors.open(tmp_path, "model")
    header = weights.files["model.safetensors"].header
    for info in header.tensors.values():
        if info.count:
            assert (header.data_start + info.start) % (info.nbytes // info.count) == 0


def test_nothing_at_all(tmp_path: Path) -> None:
    write_tensors(tmp_path / "f", {}, VALUES.__getitem__)
    assert safetensors.torch.load_file(tmp_path / "f") == {}


def test_long_tensors_are_converted_in_pieces(tmp_path: Path) -> None:
    values = np.random.default_rng(3).standard_normal((2_500_001, 2), dtype=np.float32)
    spec = TensorSpec("BF16", values.shape)
    write_tensors(tmp_path / "f", {"long": spec}, lambda _: values.T.copy().T)
    found = safetensors.torch.load_file(tmp_path / "f")["long"]
    assert torch.equal(found, torch.from_numpy(values).bfloat16())


def test_tensors_are_made_one_at_a_time(tmp_path: Path) -> None:
    """Each tensor is freed before the next is made: the peak is the largest, not the sum."""
    alive: list[int] = []

    class Counted(np.ndarray):  # type: ignore[type-arg]
        def __del__(self) -> None:
            if self.base is None:
                alive.pop()

    def produce(name: str) -> Array:
        assert not alive
        alive.append(1)
        return Counted(SPECS[name].shape, np.float32)

    floats = {name: spec for name, spec in SPECS.items() if spec.dtype in ("F32", "BF16")}
    write_tensors(tmp_path / "f", floats, produce)


def test_a_wrong_shape_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(
        OtterError, match=r"tensor matrix: made with shape \[2\], planned as \[3, 4"
    ):
        write_tensors(
            tmp_path / "f",
            SPECS,
            lambda name: np.zeros(2) if name == "matrix" else VALUES[name],
        )
    assert names(tmp_path) == []


def test_a_producer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        write_tensors(tmp_path / "f", SPECS, {}.__getitem__)
    assert names(tmp_path) == []


def test_a_full_disk_leaves_nothing(small_disk: Path) -> None:
    spec = TensorSpec("F32", (2**20,))
    with pytest.raises(OtterError, match="No space left"):
        write_tensors(small_disk / "f", {"t": spec}, lambda _: np.zeros(2**20, np.float32))
    assert names(small_disk) == []


def test_small_sets_stay_in_one_file(tmp_path: Path) -> None:
    records = write_sharded(tmp_path, "otter", SPECS, VALUES.__getitem__)
    assert names(tmp_path) == list(records) == ["otter.safetensors"]


def test_shards_and_their_index(tmp_path: Path) -> None:
    records = write_sharded(
        tmp_path, "model", SPECS, VALUES.__getitem__, {"format": "pt"}, max_shard_bytes=24
    )
    assert names(tmp_path) == sorted(records)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 3 * 4 + 12 * 2 + 8 + 2
    assert set(index["weight_map"]) == set(VALUES)
    found: dict[str, torch.Tensor] = {}
    for shard in sorted(set(index["weight_map"].values())):
        found |= safetensors.torch.load_file(tmp_path / shard)
    check(found)
    assert ShardedTensors.open(tmp_path, "model").file_of == index["weight_map"]
    for name, record in records.items():
        content = (tmp_path / name).read_bytes()
        assert record == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_shards_respect_their_limit_unless_one_tensor_exceeds_it(tmp_path: Path) -> None:
    specs = {
        name: TensorSpec("U8", (size,)) for name, size in zip("abcd", (4, 4, 20, 4), strict=True)
    }
    write_sharded(
        tmp_path, "m", specs, lambda name: np.zeros(specs[name].shape, np.uint8), max_shard_bytes=8
    )
    weights = ShardedTensors.open(tmp_path, "m")
    assert [sorted(file.header.tensors) for file in weights.files.values()] == [
        ["a", "b"],
        ["c"],
        ["d"],
    ]
