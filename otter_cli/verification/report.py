"""All that one verification found. No torch: what torch had to find arrives as records."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from otter_cli.verification.findings import Static
from otter_cli.verification.request import Request

if TYPE_CHECKING:
    from otter_cli.verification.bisect import Parting
    from otter_cli.verification.compare import CaseResult, Skipped
    from otter_cli.verification.locality import Locality
    from otter_cli.verification.poison import PoisonResult
    from otter_cli.verification.structure import PathTrace


@dataclass
class Report:
    """The levels in order. `untraced`, `unrun`: why there are no `paths`, or no `results`."""

    request: Request
    static: Static
    untraced: str = ""
    unrun: str = ""
    results: list[CaseResult] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    paths: list[PathTrace] = field(default_factory=list)
    each: list[PoisonResult] = field(default_factory=list)
    locality: list[Locality] = field(default_factory=list)
    parting: Parting | None = None

    @property
    def equal(self) -> int:
        return sum(result.equal for result in self.results)

    @property
    def control(self) -> int:
        return sum(result.control for result in self.results)

    @property
    def poison(self) -> int:
        """Cases in which no poison moved a bit; of models that can't be poisoned, none."""
        return sum(bool(result.poison) and all(result.poison.values()) for result in self.results)

    @property
    def leaks(self) -> list[PathTrace]:
        return [path for path in self.paths if path.leak]

    def record(self) -> dict[str, Any]:
        """The counts by themselves, then every level in full."""
        return {
            "cases": len(self.results),
            "equal": self.equal,
            "control": self.control,
            "poison": self.poison,
            "static": self.static.record(),
            "structure": [path.record() for path in self.paths],
            "results": [result.record() for result in self.results],
            "skipped": [skipped.record() for skipped in self.skipped],
            "poison_each": [result.record() for result in self.each],
            "locality": [result.record() for result in self.locality],
            "bisect": self.parting and self.parting.record(),
            "untraced": self.untraced,
            "unrun": self.unrun,
        }
