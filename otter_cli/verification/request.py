"""What to verify, and how: all that a proof needs to be made again."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from otter_cli.verification.grid import Grid
from otter_cli.verification.selection import Selection


@dataclass(frozen=True)
class Request:
    """`base` None: the one inside the graft. `static_only`: no model is run. `independent`: the
    base is loaded a second time even where its files are the graft's. `trust`: modelling code
    that a folder brings along is run. `budget`: seconds after which no further run begins; 0: no
    limit. `only`: what an earlier verification did, to be done again."""

    folder: Path
    base: Path | None = None
    grid: Grid = field(default_factory=Grid)
    static_only: bool = False
    independent: bool = False
    trust: bool = False
    budget: float = 0.0
    only: Selection | None = None

    @property
    def against(self) -> Path:
        return self.base or self.folder

    def record(self) -> dict[str, Any]:
        base = None if self.base is None else str(self.base)
        return {**asdict(self), "folder": str(self.folder), "base": base}
