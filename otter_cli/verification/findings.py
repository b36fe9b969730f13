"""What the static level finds. No torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from otter_cli.core.digests import Advance, sha256_file


@dataclass(frozen=True)
class Finding:
    """Something on disk that is not as it should be; of a tensor, in which file it is."""

    what: str
    file: str
    tensor: str | None = None

    def __str__(self) -> str:
        tensor = f"tensor {self.tensor} in " if self.tensor else ""
        return f"{tensor}{self.file} {self.what}"


@dataclass
class Static:
    """How many files and tensors of the base's, and how many inserted ones, were compared.

    `findings` refute; `notes` only tell. `digests`: of every file of "folder"
    and "base".
    """

    files: int = 0
    tensors: int = 0
    inserted: int = 0
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    digests: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        return not self.findings

    def record(self) -> dict[str, Any]:
        return {"holds": self.holds, **asdict(self)}


class Digests:
    """Digests taken afresh, once for all names of one file: hard links are hashed once."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._known: dict[tuple[int, int], str] = {}

    def sha256(self, path: Path) -> str:
        status = path.stat()
        key = status.st_dev, status.st_ino
        if key in self._known:
            self._advance(status.st_size)
        else:
            self._known[key] = sha256_file(path, self._advance)
        return self._known[key]
