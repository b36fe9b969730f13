"""One case of the grid: base against base, against the other model, and against it poisoned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from otter_cli.core.console import progress
from otter_cli.verification.bits import Difference, difference
from otter_cli.verification.cases import Case
from otter_cli.verification.pair import Pair
from otter_cli.verification.poison import VALUES, poisoned
from otter_cli.verification.run import Outputs, run


@dataclass(frozen=True)
class CaseResult:
    """`control`: the base equals itself. `poison`: by value, whether the logits stood still.
    `outputs`: digest of what the base gave."""

    case: Case
    equal: bool
    control: bool
    poison: dict[str, bool]
    difference: Difference
    outputs: str

    def record(self) -> dict[str, Any]:
        return {
            **vars(self),
            "case": self.case.record(),
            "difference": None if self.equal else self.difference.record(),
        }


def compare(pair: Pair, cases: list[Case], *, every_value: bool) -> Iterator[CaseResult]:
    """Runs the cases; NaN poisons each of them, the other values each or, for a quick grid, take
    turns."""
    with progress(len(cases), "comparing logits") as advance:
        for index, case in enumerate(cases):
            turn = VALUES[1 + index % (len(VALUES) - 1)]
            yield _compare(pair, case, VALUES if every_value else (VALUES[0], turn))
            advance(1)


def _compare(pair: Pair, case: Case, values: tuple[str, ...]) -> CaseResult:
    expected = run(case, pair.base)
    found = run(case, pair.other)
    return CaseResult(
        case=case,
        equal=found.same_bits(expected),
        control=run(case, pair.base).same_bits(expected),
        poison=_poison(pair, case, values, expected),
        difference=difference(expected.logits, found.logits),
        outputs=expected.sha256(),
    )


def _poison(pair: Pair, case: Case, values: tuple[str, ...], expected: Outputs) -> dict[str, bool]:
    if pair.otter is None:
        return {}
    found = {}
    tensors = [tensor for _, tensor in pair.otter.inserted_parameters()]
    for value in values:
        with poisoned(tensors, value):
            found[value] = run(case, pair.other).same_bits(expected)
    return found
