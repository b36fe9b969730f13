"""Whatever a checkpoint holds goes through reading and writing without a bit changed.

The safetensors library and torch are the independent readers and writers.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from otter_cli.checkpoint.dtypes import Array
from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.checkpoint.link_or_copy import place_files
from otter_cli.checkpoint.safetensors_reader import TensorFile
from otter_cli.checkpoint.safetensors_writer import TensorSpec, write_sharded, write_tensors
from tests.property.random_tensors import Stored, metadata, tensor_sets

Tensors = dict[str, Stored]
relaxed = settings(deadline=None, max_examples=100)


def same(ours: Array, theirs: Array) -> bool:
    kind = ours.dtype.kind
    return ours.dtype == theirs.dtype and np.array_equal(ours, theirs, equal_nan=kind in "fc")


@relaxed
@given(tensor_sets, metadata)
def test_what_the_library_writes_we_read(tensors: Tensors, texts: dict[str, str]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "f.safetensors")
        written = {name: tensor.torch() for name, tensor in tensors.items()}
        safetensors.torch.save_file(written, path, texts or None)
        file = TensorFile(path)
        assert file.header.metadata == texts
        assert set(file.header.tensors) == set(tensors)
        for name, tensor in tensors.items():
            info = file.header.tensors[name]
            assert (info.dtype, info.shape) == (tensor.dtype, tensor.shape)
            assert file.read_raw(name) == tensor.data
            assert same(file.read(name), tensor.values())


@relaxed
@given(tensor_sets, metadata)
def test_what_we_write_the_library_reads(tensors: Tensors, texts: dict[str, str]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "f.safetensors")
        specs = {name: tensor.spec for name, tensor in tensors.items()}
        write_tensors(path, specs, lambda name: tensors[name].numpy(), texts)
        found = dict(safetensors.deserialize(path.read_bytes()))
        assert set(found) == set(tensors)
        for name, tensor in tensors.items():
            assert found[name]["dtype"] == tensor.dtype
            assert tuple(found[name]["shape"]) == tensor.shape
            assert bytes(found[name]["data"]) == tensor.data
        with safetensors.safe_open(path, "np") as file:
            assert (file.metadata() or {}) == texts


@relaxed
@given(tensor_sets, st.integers(1, 400), st.sampled_from(["link", "copy"]))
def test_checkpoints_sharded_or_not_are_placed_unchanged(
    tensors: Tensors, limit: int, mode: str
) -> None:
    with TemporaryDirectory() as root:
        base, out = Path(root, "base"), Path(root, "out")
        base.mkdir()
        (base / "config.json").write_text("{}")
        specs = {name: tensor.spec for name, tensor in tensors.items()}
        write_sharded(
            base, "model", specs, lambda name: tensors[name].numpy(), max_shard_bytes=limit
        )
        first = Checkpoint.open(base)
        place_files(base, first.files, out, mode="link" if mode == "link" else "copy")
        second = Checkpoint.open(out)
        assert second.files == first.files
        assert second.file_of == first.file_of
        for file in first.files:
            assert (base / file).read_bytes() == (out / file).read_bytes()
        for name, tensor in tensors.items():
            assert second.read_raw(name) == tensor.data


@relaxed
@given(tensor_sets, st.data())
def test_parts_are_parts_of_the_whole(tensors: Tensors, data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "f.safetensors")
        specs = {name: tensor.spec for name, tensor in tensors.items()}
        write_tensors(path, specs, lambda name: tensors[name].numpy())
        file = TensorFile(path)
        for name, tensor in tensors.items():
            if 0 in tensor.shape or not tensor.shape:
                continue
            picks = [st.lists(st.integers(0, tensor.shape[axis] - 1)) for axis in (0, -1)]
            rows, columns = (np.array(data.draw(pick), dtype=np.intp) for pick in picks)
            whole = file.read(name)
            assert same(file.read(name, rows=rows), whole[rows])
            assert same(file.read(name, columns=columns), whole[..., columns])
            if len(tensor.shape) > 1:
                both = file.read(name, rows=rows, columns=columns)
                assert same(both, whole[rows][..., columns])


floats = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6),
    elements=st.floats(width=32),
)


@relaxed
@given(floats, st.sampled_from(["BF16", "F16", "F32"]))
def test_floats_are_stored_as_torch_would_store_them(values: Array, dtype: str) -> None:
    kinds = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
    with TemporaryDirectory() as folder:
        path = Path(folder, "f.safetensors")
        write_tensors(path, {"t": TensorSpec(dtype, values.shape)}, lambda _: values)
        found = safetensors.torch.load_file(path)["t"]
        expected = torch.from_numpy(values.copy()).to(kinds[dtype])
        assert found.dtype == expected.dtype
        assert torch.equal(found.isnan(), expected.isnan())
        assert torch.equal(found.nan_to_num(7), expected.nan_to_num(7))
        assert same(TensorFile(path).read("t"), expected.float().numpy())
