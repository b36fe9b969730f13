"""Digests of large files, remembered between runs: 14 GB take a minute to hash, once."""

import os
import time
from pathlib import Path

from otter_cli.core.console import warn
from otter_cli.core.digests import Advance, sha256_file
from otter_cli.core.errors import OtterError, from_os_error
from otter_cli.core.jsonlines import JsonLines, read_jsonlines

_WORTH_BYTES = 2**20
# A file written a moment ago may be written again without its time moving on.
_SETTLED_SECONDS = 2.0


def default_cache_path() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root, "otter", "digests.jsonl")


class DigestCache:
    """SHA-256 by device, inode, size and modification time, so that hard links share an entry.

    It trusts those four: what must notice a forged time, as verification must, hashes afresh.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or default_cache_path()
        self._known: dict[str, str] = {}
        if self.path.exists():
            self._load()

    def sha256(self, path: Path, advance: Advance | None = None) -> str:
        """The file's digest; `advance` is told its bytes whether or not they had to be read."""
        try:
            before = path.stat()
            known = self._known.get(_key(before))
            if known is not None:
                if advance is not None:
                    advance(before.st_size)
                return known
            digest = sha256_file(path, advance)
            if _key(path.stat()) != _key(before):
                raise OtterError(
                    f"{path} changed while it was being read",
                    hint="wait until whatever writes it is done",
                )
        except OSError as error:
            raise from_os_error(error, f"read {path}") from error
        if before.st_size >= _WORTH_BYTES and time.time() - before.st_mtime > _SETTLED_SECONDS:
            self._remember(_key(before), digest)
        return digest

    def _load(self) -> None:
        try:
            for record in read_jsonlines(self.path):
                self._known[str(record.get("file"))] = str(record.get("sha256"))
        except OtterError as error:
            warn(f"starting a new list of digests: {error}")
            self.path.unlink(missing_ok=True)

    def _remember(self, key: str, digest: str) -> None:
        self._known[key] = digest
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with JsonLines(self.path) as lines:
                lines.append({"file": key, "sha256": digest})
        except (OSError, OtterError) as error:
            # Only time is lost: the next run hashes again.
            warn(f"digests are not remembered: {error}")


def _key(status: os.stat_result) -> str:
    return f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}"
