"""Reading through the map: the right elements, and only those."""

from pathlib import Path

import numpy as np
import pytest

from otter_cli.checkpoint.tensor_file import TensorFile
from otter_cli.core.errors import OtterError
from tests.unit.checkpoint.crafted import craft, entry

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
