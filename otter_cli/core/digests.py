"""SHA-256 of files, bytes and JSON values, always as lower-case hex."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHUNK_BYTES = 8 * 2**20

Advance = Callable[[int], None]


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_json(value: Any) -> str:
    """Digest of the canonical JSON text: sorted keys, no spaces, UTF-8."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return sha256_bytes(text.encode())


def sha256_file(path: str | Path, advance: Advance | None = None) -> str:
    """Digest of a file of any size in flat memory; `advance` is told the bytes of each chunk."""
    digest = hashlib.sha256()
    # One buffer for the whole file: a fresh bytes object per chunk costs a third of the speed.
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            if advance is not None:
                advance(count)
    return digest.hexdigest()
