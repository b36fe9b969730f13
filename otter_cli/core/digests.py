"""SHA-256 of files, bytes and JSON values, and a cache of the digests of large files.

Digests are lower-case hex. The cache is keyed by device, inode, size and modification time: hashing
14 GB takes a minute, so it is done once. Verification does not use the cache.
"""

import hashlib
import json
import os
import time
from functools import cache
from pathlib import Path
from typing import Any

from otter_cli.core.console import Advance, warn
from otter_cli.core.errors import OtterError, changed_while_read, from_os_error
from otter_cli.core.jsonlines import JsonLinesWriter, read_jsonlines
from otter_cli.core.private_files import (
    NotPrivate,
    otter_cache_folder,
    path_of_descriptor,
    private_file,
    private_folder,
)

CHUNK_BYTES = 8 * 2**20


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_json(value: Any) -> str:
    """Digest of the canonical JSON text: sorted keys, no spaces, UTF-8."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return sha256_bytes(text.encode())


def sha256_file(path: str | Path, advance: Advance | None = None) -> str:
    """Digest of a file, in constant memory. `advance` receives the bytes of each chunk."""
    digest = hashlib.sha256()
    # One buffer for all chunks: a new bytes object for each would cost a third of the speed.
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            if advance is not None:
                advance(count)
    return digest.hexdigest()


_MIN_CACHED_BYTES = 2**20
# A file just written can be rewritten without its modification time changing.
_SETTLED_SECONDS = 2.0


def default_digest_cache_path() -> Path:
    return otter_cache_folder() / "digests.jsonl"


class DigestCache:
    """SHA-256 by device, inode, size and modification time, so that hard links share an entry.

    It trusts these four. Verification must notice a forged time, so it does not use the cache. The
    list is used only where no other user can write to it, or others could forge digests.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or default_digest_cache_path()
        self._known: dict[str, str] = {}
        if os.path.lexists(self.path):
            self._load()

    def sha256(self, path: Path, advance: Advance | None = None) -> str:
        """The file's digest. `advance` receives its bytes even where they need not be read."""
        try:
            before = path.stat()
            known = self._known.get(_file_key(before))
            if known is not None:
                if advance is not None:
                    advance(before.st_size)
                return known
            digest = sha256_file(path, advance)
            if _file_key(path.stat()) != _file_key(before):
                raise changed_while_read(path)
        except OSError as error:
            raise from_os_error(error, f"read {path}") from error
        if before.st_size >= _MIN_CACHED_BYTES and time.time() - before.st_mtime > _SETTLED_SECONDS:
            self._remember(_file_key(before), digest)
        return digest

    def _load(self) -> None:
        try:
            with private_folder(self.path.parent) as folder, private_file(folder, self.path.name):
                for record in read_jsonlines(
                    path_of_descriptor(folder, self.path.parent) / self.path.name
                ):
                    self._known[str(record.get("file"))] = str(record.get("sha256"))
        except NotPrivate as error:
            _warn_once(f"remembered digests are not used: {error}")
        except OSError as error:
            _warn_once(f"remembered digests cannot be read: {error}")
        except OtterError as error:
            warn(f"starting a new list of digests: {error}")
            self._known.clear()
            self.path.unlink(missing_ok=True)

    def _remember(self, key: str, digest: str) -> None:
        self._known[key] = digest
        try:
            with private_folder(self.path.parent) as folder:
                if os.path.lexists(self.path):
                    with private_file(folder, self.path.name):
                        pass
                with JsonLinesWriter(
                    path_of_descriptor(folder, self.path.parent) / self.path.name
                ) as lines:
                    os.chmod(self.path.name, 0o600, dir_fd=folder)  # whatever the umask is
                    lines.append({"file": key, "sha256": digest})
        except (OSError, OtterError) as error:
            # The next run hashes again, so only time is lost.
            _warn_once(f"digests are not remembered: {error}")


@cache
def _warn_once(message: str) -> None:
    """A run opens the list many times, but warns once."""
    warn(message)


def _file_key(status: os.stat_result) -> str:
    return f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}"
