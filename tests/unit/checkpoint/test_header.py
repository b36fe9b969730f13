"""Sound headers are read as the safetensors library reads them."""

import hashlib
import json
from pathlib import Path

import pytest
import safetensors

from otter_cli.checkpoint.dtypes import BITS
from otter_cli.checkpoint.header import read_header
from otter_cli.checkpoint.tensor_info import TensorInfo
from tests.unit.checkpoint.crafted import craft, entry, padded


def test_what_a_header_says(tmp_path: Path) -> None:
    fields = {
        "__metadata__": {"format": "pt"},
        "b": entry("BF16", [2, 3], 4, 16),
        "a": entry("F32", [], 0, 4),
    }
    header = read_header(craft(tmp_path / "f.safetensors", fields, bytes(16)))
    text = padded(fields)
    assert header.metadata == {"format": "pt"}
    assert header.tensors == {
        "a": TensorInfo("a", "F32", (), 0, 4),
        "b": TensorInfo("b", "BF16", (2, 3), 4, 16),
    }
    assert (header.data_start, header.size) == (8 + len(text), 8 + len(text) + 16)
    assert header.sha256 == hashlib.sha256(text).hexdigest()


def test_counts_and_bytes() -> None:
    assert TensorInfo("t", "BF16", (2, 3), 10, 22).nbytes == 12
    assert TensorInfo("t", "BF16", (2, 3), 10, 22).count == 6
    assert TensorInfo("t", "F32", (), 0, 4).count == 1
    assert TensorInfo("t", "F32", (0, 5), 0, 0).count == 0


@pytest.mark.parametrize("padding", [b"", b" ", b" " * 7, b"\n\t "])
def test_padding_after_the_header_is_fine(tmp_path: Path, padding: bytes) -> None:
    text = json.dumps({"a": entry("U8", [3], 0, 3)}).encode() + padding
    assert list(read_header(craft(tmp_path / "f", text, b"abc")).tensors) == ["a"]


def test_no_tensors_at_all(tmp_path: Path) -> None:
    assert read_header(craft(tmp_path / "f", {})).tensors == {}


def test_empty_tensors_may_lie_anywhere_between_others(tmp_path: Path) -> None:
    fields = {
        "first": entry("F32", [0], 0, 0),
        "full": entry("F32", [1], 0, 4),
        "last": entry("BF16", [4, 0], 4, 4),
    }
    assert len(read_header(craft(tmp_path / "f", fields, bytes(4))).tensors) == 3


@pytest.mark.parametrize("dtype", BITS)
def test_every_dtype_of_the_library_has_its_width(tmp_path: Path, dtype: str) -> None:
    data = bytes(BITS[dtype])
    path = craft(tmp_path / "f", {"t": entry(dtype, [8], 0, len(data))}, data)
    assert read_header(path).tensors["t"].nbytes == BITS[dtype]
    with safetensors.safe_open(path, "np") as reference:
        assert reference.get_slice("t").get_dtype() == dtype


def test_real_files_agree_with_the_library(shared: Path) -> None:
    for path in sorted(shared.glob("models/*/*.safetensors")):
        header = read_header(path)
        with safetensors.safe_open(path, "np") as reference:
            assert header.metadata == reference.metadata()
            assert set(header.tensors) == set(reference.keys())
            for name, info in header.tensors.items():
                assert list(info.shape) == reference.get_slice(name).get_shape()
                assert info.dtype == reference.get_slice(name).get_dtype()
