"""The results of all levels, and the verdict that follows from them. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from otter_cli.verification.agenda import Cost, VerificationRequest
from otter_cli.verification.grid import Case
from otter_cli.verification.static import StaticResult

if TYPE_CHECKING:
    from otter_cli.verification.bisect import FirstDifference
    from otter_cli.verification.compare import CaseResult, Skipped
    from otter_cli.verification.poison import LocalityResult, PoisonResult
    from otter_cli.verification.structure import PathTrace


@dataclass(frozen=True)
class LeftOut:
    """Work of the grid that was not done, and why.

    `cases` and `traces` are names. `poison` names cases that were compared and not poisoned.
    `levels` were not done at all.
    """

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
class VerificationReport:
    """The results of the levels, in order.

    `untraced` and `unrun` say why there are no `paths`, or no `results`. `left_out` is None where
    the whole grid was run.
    """

    request: VerificationRequest
    static: StaticResult
    untraced: str = ""
    unrun: str = ""
    results: list[CaseResult] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    paths: list[PathTrace] = field(default_factory=list)
    poison_each: list[PoisonResult] = field(default_factory=list)
    locality: list[LocalityResult] = field(default_factory=list)
    first_difference: FirstDifference | None = None
    left_out: LeftOut | None = None
    cost: Cost = field(default_factory=Cost)
    streams: dict[str, str] = field(default_factory=dict)  # what ran them, by dtype and attention
    seconds: float = 0.0

    @property
    def equal(self) -> int:
        return sum(result.equal for result in self.results)

    @property
    def control(self) -> int:
        return sum(result.control for result in self.results)

    @property
    def poison(self) -> int:
        """Cases in which no poison changed a bit. 0 for models that cannot be poisoned."""
        return sum(bool(result.poison) and all(result.poison.values()) for result in self.results)

    @property
    def compared(self) -> list[Case]:
        """All cases that were tried, including those that the base cannot run."""
        return [
            *(result.case for result in self.results),
            *(skipped.case for skipped in self.skipped),
        ]

    @property
    def repeated(self) -> int:
        """Cases in which the base ran twice."""
        return sum(result.repeated for result in self.results)

    @property
    def leaks(self) -> list[PathTrace]:
        return [path for path in self.paths if path.leak]

    def record(self) -> dict[str, Any]:
        """The counts, then every level in full."""
        return {
            "cases": len(self.results),
            "equal": self.equal,
            "control": self.control,
            "poison": self.poison,
            "static": self.static.record(),
            "structure": list(map(asdict, self.paths)),
            "results": [result.record() for result in self.results],
            "skipped": list(map(asdict, self.skipped)),
            "poison_each": [result.record() for result in self.poison_each],
            "locality": list(map(asdict, self.locality)),
            "bisect": self.first_difference and self.first_difference.record(),
            "untraced": self.untraced,
            "unrun": self.unrun,
            "partial": self.left_out is not None,
            "left_out": self.left_out and asdict(self.left_out),
            "cost": self.cost.record(),
            "streams": self.streams,
            "seconds": round(self.seconds, 1),
        }


BY_CONSTRUCTION = "exact by construction"
ON_GRID = "exact on grid"
CLOSE = "close"
DIFFERENT = "different"
INCONCLUSIVE = "inconclusive"
ON_DISK = "identical on disk"  # the static level alone was requested

Strictness = Literal["construction", "grid", "close"]
_PASSING: dict[Strictness, tuple[str, ...]] = {
    "construction": (BY_CONSTRUCTION,),
    "grid": (BY_CONSTRUCTION, ON_GRID),
    "close": (BY_CONSTRUCTION, ON_GRID, CLOSE),
}

# Mean KL a row, in nats. Rounding stays far below it, even in bfloat16, and retraining above.
_CLOSE_KL = 1e-3


@dataclass(frozen=True)
class Verdict:
    """`name` is one of the six above, `sentence` explains it."""

    name: str
    sentence: str

    def passes(self, strictness: Strictness) -> bool:
        return self.name in (*_PASSING[strictness], ON_DISK)


def decide(report: VerificationReport) -> Verdict:
    """The verdict (docs/method.md, "Exactness: what verify proves").

    Refutations come first: one unequal bit on disk outweighs any number of equal logits.
    """
    refutations = list(_refutations(report))
    if refutations:
        more = f" (and {len(refutations) - 1} more)" if len(refutations) > 1 else ""
        return Verdict(DIFFERENT, f"{refutations[0]}{more}.")
    files = _files(report)
    if report.request.static_only:
        return Verdict(ON_DISK, f"{files}; no model was run.")
    cases = len(report.results)
    if not cases and report.left_out and not report.skipped:
        return Verdict(INCONCLUSIVE, f"{report.left_out.why} before any case was compared.")
    if not cases:
        return Verdict(INCONCLUSIVE, f"the base runs none of the grid: {report.skipped[0].reason}")
    if report.control < cases:
        return Verdict(
            INCONCLUSIVE,
            f"on this machine the base differs from itself in {cases - report.control} of {cases} "
            "cases, so nothing can be said of the graft.",
        )
    if report.equal < cases:
        return _close(report)
    left = len(report.left_out.cases) if report.left_out else 0
    counted = f"{cases} of {cases + left} cases" if left else f"all {cases} cases"
    logits = f"its logits are the base's bit for bit in {counted}"
    if report.untraced:
        return Verdict(
            ON_GRID,
            f"{logits}; for other inputs that is likely, not proven{_left_out_note(report)}.",
        )
    if report.left_out and (report.left_out.traces or not report.paths or not report.poison):
        # Only a trace of every path holds for all values of the inserted tensors.
        return Verdict(ON_GRID, f"{logits}; the trace is not complete{_left_out_note(report)}.")
    return Verdict(
        BY_CONSTRUCTION,
        f"{files}; {_paths(report)}; {logits}, whatever the inserted tensors "
        f"hold{_left_out_note(report)}.",
    )


def _left_out_note(report: VerificationReport) -> str:
    return f" ({report.left_out.why}; left out: {report.left_out})" if report.left_out else ""


def _paths(report: VerificationReport) -> str:
    """What the trace shows, and on what this rests for layers that were not compared."""
    paths = f"no operation of the base reads an inserted value on any of {len(report.paths)} paths"
    partial = next((path for path in report.paths if path.layers), None)
    if partial is None:
        return paths
    *before, last = map(str, partial.layers)
    layers = f"{', '.join(before)} and {last}" if before else last
    return (
        f"{paths} in any layer; that no other operation runs was compared in layers {layers} of "
        f"{partial.depth}, and the others are of the same kinds"
    )


def _refutations(report: VerificationReport) -> Iterator[str]:
    yield from map(str, report.static.findings)
    for path in report.leaks:
        yield f"{path.case}: {path.leak}"
    for result in report.results:
        if result.failure:
            yield f"{result.case} raises {result.failure}, the base does not"
        for value, unchanged in result.poison.items():
            if not unchanged and result.control:
                yield f"{result.case}: {value} in the inserted tensors changes logits"
    for poisoned in report.poison_each:
        if poisoned.moved:
            tensor, value = poisoned.moved
            yield f"{value} in {tensor} alone changes logits"
    for locality in report.locality:
        if locality.failure:
            yield f"insertion {locality.insertion} is not local: {locality.failure}"
    if report.unrun:
        yield f"it could not be run: {report.unrun}"


def _files(report: VerificationReport) -> str:
    static = report.static
    return (
        f"{static.files} files and {static.tensors} tensors are the base's byte for byte, and "
        f"{static.inserted} inserted tensors are as planned"
    )


def _close(report: VerificationReport) -> Verdict:
    """Close or different, by the KL of the worst case."""
    moved = [result.difference for result in report.results if not result.equal]
    changed, compared = sum(d.changed for d in moved), sum(d.compared for d in moved)
    argmaxes, rows = sum(d.argmaxes for d in moved), sum(d.rows for d in moved)
    kl = max(d.kl for d in moved)
    near = kl <= _CLOSE_KL and not any(d.not_finite or d.shapes for d in moved)
    return Verdict(
        CLOSE if near else DIFFERENT,
        f"{len(moved)} of {len(report.results)} cases differ: in them {changed} of {compared} "
        f"logits, {argmaxes} of {rows} argmaxes, mean KL up to {kl:.2g} nats.",
    )
