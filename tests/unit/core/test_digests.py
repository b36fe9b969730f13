import hashlib
import subprocess
from pathlib import Path

import pytest

from otter_cli.core.digests import CHUNK_BYTES, sha256_bytes, sha256_file, sha256_json


def test_known_digest() -> None:
    # FIPS 180-2, appendix B.1
    assert sha256_bytes(b"abc").startswith("ba7816bf8f01cfea414140de5dae2223")


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1])
def test_files_around_the_chunk_size(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * (size // 256) + b"x" * (size % 256))
    told: list[int] = []
    assert sha256_file(path, told.append) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sum(told) == size


def test_agrees_with_sha256sum(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"otter" * 1000)
    printed = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True)
    assert printed.stdout.split()[0] == sha256_file(path)


def test_json_digest_ignores_order_and_layout_only() -> None:
    assert sha256_json({"a": 1, "b": [2, "é"]}) == sha256_json({"b": [2, "é"], "a": 1})
    assert sha256_json({"a": [1, 2]}) != sha256_json({"a": [2, 1]})
    with pytest.raises(ValueError, match="not JSON compliant"):
        sha256_json({"loss": float("nan")})
