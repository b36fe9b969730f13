"""All that one verification found. No torch: what torch had to find arrives as records."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from otter_cli.verification.cases import Case
from otter_cli.verification.cost import Cost
from otter_cli.verification.findings import Static
from otter_cli.verification.request import Request

if TYPE_CHECKING:
    from otter_cli.verification.bisect import Parting
    from otter_cli.verification.compare import CaseResult, Skipped
    from otter_cli.verification.locality import Locality
    from otter_cli.verification.poison import PoisonResult
    from otter_cli.verification.structure import PathTrace


@dataclass(frozen=True)
class LeftOut:
    """Work that the grid has and this run has not done: names of cases and of traced paths, names
    of cases that were compared and not poisoned, and whole levels. `why` it was left out."""

    why: str
    cases: tuple[str, ...] = ()
    traces: tuple[str, ...] = ()
    poison: tuple[str, ...] = ()
    levels: tuple[str, ...] = ()

    def __str__(self) -> str:
        counted = (
            (len(self.cases), "cases"),
            (len(self.traces), "traced paths"),
            (len(self.poison), "cases with poison"),
        )
        parts = [f"{count} {what}" for count, what in counted if count]
        return ", ".join([*parts, *self.levels])


@dataclass
class Report:
    """The levels in order. `untraced`, `unrun`: why there are no `paths`, or no `results`.
    `left_out`: None where the whole grid was run."""

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
    left_out: LeftOut | None = None
    cost: Cost = field(default_factory=Cost)
    seconds: float = 0.0

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
    def compared(self) -> list[Case]:
        """All cases that were tried, those that the base cannot run too."""
        return [
            *(result.case for result in self.results),
            *(skipped.case for skipped in self.skipped),
        ]

    @property
    def repeated(self) -> int:
        """Cases in which the base itself ran twice."""
        return sum(result.repeated for result in self.results)

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
            "partial": self.left_out is not None,
            "left_out": self.left_out and asdict(self.left_out),
            "cost": self.cost.record(),
            "seconds": round(self.seconds, 1),
        }
