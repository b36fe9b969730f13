"""Memory does not grow with the files' sizes, nor with the claims of hostile files.

Every test runs in a process that may not allocate more than a few MiB beyond what it starts with.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.checkpoint.crafted import craft, entry, padded, single, write_index

GIB = 2**30

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="RLIMIT_DATA bounds mappings on Linux only"
)

LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from otter_cli.checkpoint.link_or_copy import copy_file
from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.checkpoint.safetensors_reader import read_header
from otter_cli.checkpoint.safetensors_reader import TensorFile
from otter_cli.checkpoint.safetensors_writer import TensorSpec, write_tensors
from otter_cli.core.digests import sha256_file
from otter_cli.core.errors import OtterError

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024

path, mib = Path(sys.argv[1]), int(sys.argv[2])
limit = status("VmData") + mib * 2**20
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
"""


def run(code: str, path: Path, mib: int) -> str:
    command = [sys.executable, "-c", LIMITED + code, str(path), str(mib)]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr[-2000:]
    return child.stdout


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A sound file of a GiB of zeros that takes no space on disk."""
    rows = GIB // 4 // 4096
    text = padded({"t": entry("F32", [rows, 4096], 0, GIB)})
    path = craft(tmp_path / "large.safetensors", text)
    os.truncate(path, 8 + len(text) + GIB)
    return path


def test_the_limit_bites(large: Path) -> None:
    with pytest.raises(AssertionError, match="MemoryError"):
        run("np.zeros(2**26, np.uint8)", large, 16)


def test_a_whole_float32_tensor_is_only_a_view(large: Path) -> None:
    assert run("print(TensorFile(path).read('t').shape)", large, 4) == "(65536, 4096)\n"


def test_rows_and_columns_leave_the_rest_on_disk(large: Path) -> None:
    code = """
file = TensorFile(path)
before = status("RssFile")
print(file.read("t", rows=np.array([0, 30000, 65535]), columns=np.arange(8)).shape)
print((status("RssFile") - before) // 2**20)
"""
    shape, touched = run(code, large, 4).splitlines()
    assert shape == "(3, 8)"
    assert int(touched) < 8


def test_columns_of_every_row_cost_only_themselves(large: Path) -> None:
    assert run("print(TensorFile(path).read('t', columns=np.arange(4)).shape)", large, 8)


def test_hashing_and_copying_take_their_buffers_only(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.touch()
    os.truncate(path, GIB // 8)
    code = "print(sha256_file(path) == copy_file(path, path.with_suffix('.copy')))"
    assert run(code, path, 40) == "True\n"


def test_writing_takes_one_tensor(tmp_path: Path) -> None:
    """Of eight tensors of 32 MiB, memory holds one and a converted piece of it."""
    code = """
specs = {str(i): TensorSpec("BF16", (2**23,)) for i in range(8)}
write_tensors(path, specs, lambda name: np.full(2**23, float(name), np.float32))
print(TensorFile(path).read("7", rows=np.array([0])))
"""
    assert run(code, tmp_path / "f.safetensors", 96) == "[7.]\n"


HOSTILE = """
try:
    Checkpoint.open(path)
except OtterError as error:
    print(error.what)
"""


@pytest.mark.parametrize(
    ("claim", "what"),
    [
        (entry("F32", [2**40], 0, 2**42), "truncated"),
        (entry("F32", [2**50], 0, 2**52), "truncated"),
        (entry("F32", [2**62], 0, 8), "absurd"),
        (entry("U8", [2**31, 2**31], 0, 8), "absurd"),
    ],
)
def test_claims_of_size_are_not_believed(
    tmp_path: Path, claim: dict[str, object], what: str
) -> None:
    folder = single(tmp_path / "base", "a")
    craft(folder / "model.safetensors", {"a": claim}, bytes(8))
    assert what in run(HOSTILE, folder, 2)


def test_a_sparse_header_of_zeros_is_not_read(tmp_path: Path) -> None:
    folder = single(tmp_path / "base", "a")
    path = craft(folder / "model.safetensors", b"", length=99_999_999)
    os.truncate(path, GIB)
    assert "not a JSON object" in run(HOSTILE, folder, 2)


@pytest.mark.parametrize("text", [b'{"a":[' + b"[],", b"{" + b'"a":{},', b'{"a":[' + b"0,"])
def test_json_that_would_swell_is_not_parsed(tmp_path: Path, text: bytes) -> None:
    """Twenty million values of three bytes would take a gigabyte."""
    folder = single(tmp_path / "base", "a")
    start, unit = text[:-3], text[-3:]
    craft(folder / "model.safetensors", start + unit * (60_000_000 // len(unit)))
    assert "far more entries" in run(HOSTILE, folder, 128)


def test_a_huge_config_and_a_huge_index_are_not_read(tmp_path: Path) -> None:
    folder = single(tmp_path / "base", "a")
    os.truncate(folder / "config.json", GIB)
    assert "over the limit" in run(HOSTILE, folder, 2)
    folder = single(tmp_path / "other", "a")
    (folder / "model.safetensors").unlink()
    write_index(folder, {})
    os.truncate(folder / "model.safetensors.index.json", GIB)
    assert "over the limit" in run(HOSTILE, folder, 2)
