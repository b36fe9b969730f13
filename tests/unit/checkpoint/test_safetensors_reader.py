"""Sound safetensors files are read as the safetensors library reads them."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors

from otter_cli.checkpoint.dtypes import DTYPE_BITS
from otter_cli.checkpoint.safetensors_reader import TensorFile, TensorInfo, read_header
from otter_cli.core.errors import OtterError
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


@pytest.mark.parametrize("dtype", DTYPE_BITS)
def test_every_dtype_of_the_library_has_its_width(tmp_path: Path, dtype: str) -> None:
    data = bytes(DTYPE_BITS[dtype])
    path = craft(tmp_path / "f", {"t": entry(dtype, [8], 0, len(data))}, data)
    assert read_header(path).tensors["t"].nbytes == DTYPE_BITS[dtype]
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


MATRIX = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture
def matrix(tmp_path: Path) -> TensorFile:
    fields = {"m": entry("F32", [3, 4], 0, 48)}
    return TensorFile(craft(tmp_path / "f.safetensors", fields, MATRIX.tobytes()))


def test_whole_rows_columns_and_both(matrix: TensorFile) -> None:
    rows, columns = np.array([2, 0]), np.array([3, 1, 1])
    assert np.array_equal(matrix.read("m"), MATRIX)
    assert np.array_equal(matrix.read("m", rows=rows), MATRIX[[2, 0]])
    assert np.array_equal(matrix.read("m", columns=columns), MATRIX[:, [3, 1, 1]])
    both = matrix.read("m", rows=rows, columns=columns)
    assert np.array_equal(both, MATRIX[[2, 0]][:, [3, 1, 1]])


def test_slices_select_too(matrix: TensorFile) -> None:
    found = matrix.read("m", rows=np.arange(1, 3), columns=np.arange(0))
    assert found.shape == (2, 0)


def test_columns_are_the_last_axis(tmp_path: Path) -> None:
    cube = np.arange(24, dtype="<u2").reshape(2, 3, 4)
    file = TensorFile(craft(tmp_path / "f", {"e": entry("U16", [2, 3, 4], 0, 48)}, cube.tobytes()))
    assert np.array_equal(file.read("e", columns=np.array([0, 3])), cube[..., [0, 3]])
    assert np.array_equal(file.read("e", rows=np.array([1])), cube[[1]])


def test_the_base_cannot_be_written_through_what_is_read(matrix: TensorFile) -> None:
    with pytest.raises(ValueError, match="read-only"):
        matrix.read("m")[0, 0] = 1
    assert matrix.read_raw("m").readonly


def test_raw_bytes(matrix: TensorFile) -> None:
    assert matrix.read_raw("m") == MATRIX.tobytes()


def test_tensors_at_odd_places_are_read_right(tmp_path: Path) -> None:
    values = np.array([1.5, -2.5], np.float32)
    fields = {"byte": entry("U8", [1], 0, 1), "odd": entry("F32", [2], 1, 9)}
    file = TensorFile(craft(tmp_path / "f", fields, b"x" + values.tobytes()))
    assert np.array_equal(file.read("odd"), values)
    assert file.read("odd").flags.aligned


def test_scalars_and_empty_tensors(tmp_path: Path) -> None:
    fields = {"scalar": entry("F16", [], 0, 2), "empty": entry("BF16", [0, 4], 2, 2)}
    file = TensorFile(craft(tmp_path / "f", fields, b"\x00\x3c"))
    assert file.read("scalar").shape == () and file.read("scalar") == 1
    assert file.read("empty").shape == (0, 4)
    assert len(file.read_raw("empty")) == 0


def test_packed_floats_can_be_carried_but_not_converted(tmp_path: Path) -> None:
    file = TensorFile(craft(tmp_path / "f", {"q": entry("F8_E4M3", [4], 0, 4)}, b"abcd"))
    assert file.read_raw("q") == b"abcd"
    with pytest.raises(OtterError, match="q is stored as F8_E4M3") as caught:
        file.read("q")
    assert "bf16" in caught.value.hint


def test_a_file_that_changes_after_opening_is_noticed(matrix: TensorFile) -> None:
    with open(matrix.path, "ab") as file:
        file.write(b"more")
    with pytest.raises(OtterError, match="changed while it was being read"):
        matrix.read("m")


def test_a_file_that_vanishes_after_opening_is_noticed(matrix: TensorFile) -> None:
    matrix.path.unlink()
    with pytest.raises(OtterError, match="No such file"):
        matrix.read("m")
