"""The grid level: the base against itself, against the other model, and against it poisoned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from otter_cli.core.errors import OtterError
from otter_cli.model.otter import OtterForCausalLM
from otter_cli.verification.agenda import TimeBudget, estimated_tokens
from otter_cli.verification.bits import LogitsDifference, difference
from otter_cli.verification.case_runner import CaseOutputs, ModelPair, OutputDigests, run_case
from otter_cli.verification.grid import Case
from otter_cli.verification.poison import POISON_VALUES, fill_with

# What transformers raises for ways of running that a model does not know.
_REFUSALS = (ValueError, TypeError, AttributeError, NotImplementedError, RuntimeError, OtterError)


@dataclass(frozen=True)
class CaseResult:
    """`control`: the base equals itself. `poison`: by value, whether the logits stood still.
    `outputs`: digests of what the base gave. `failure`: what the other model raised. `repeated`:
    the base itself ran twice; else the other model's run, which gave its bits, is the control."""

    case: Case
    equal: bool
    control: bool
    poison: dict[str, bool]
    difference: LogitsDifference
    outputs: OutputDigests
    failure: str = ""
    repeated: bool = True

    def record(self) -> dict[str, Any]:
        return {
            **vars(self),
            "case": self.case.record(),
            "outputs": asdict(self.outputs),
            "difference": None if self.equal else self.difference.record(),
        }


@dataclass(frozen=True)
class Skipped:
    """A case that the base itself cannot run: nothing to compare with."""

    case: Case
    reason: str

    def record(self) -> dict[str, Any]:
        return {"case": self.case.record(), "reason": self.reason}


def compare(
    pair: ModelPair, cases: list[Case], *, repeat: bool = True, pace: TimeBudget | None = None
) -> Iterator[CaseResult | Skipped]:
    """`repeat`: the base runs twice in every case. Else it does so only where the other model
    differs: where that gives the base's bits, a second run has given them already."""
    pace = pace or TimeBudget()
    warm_up(pair, cases)
    for case in cases:
        if pace.stopped:
            return
        yield _compare_case(pair, case, repeat)
        pace.done(estimated_tokens(case) * (3 if repeat else 2))


def warm_up(pair: ModelPair, cases: list[Case]) -> None:
    """A process's first pass by several threads may round otherwise than all that follow: stock
    transformers on a CPU, in four processes of ten (torch 2.13, 0.6 B, two threads)."""
    for case in {case.threads: case for case in reversed(cases)}.values():
        with suppress(*_REFUSALS):
            run_case(case, pair.base)


def _compare_case(pair: ModelPair, case: Case, repeat: bool) -> CaseResult | Skipped:
    try:
        expected = run_case(case, pair.base).digests()
    except _REFUSALS as error:
        return Skipped(case, _error_line(error))
    # Before the other model runs, which may leave something behind.
    control = not repeat or run_case(case, pair.base).digests() == expected
    try:
        found = run_case(case, pair.other)
    except _REFUSALS as error:
        control = control if repeat else _base_repeats(pair, case)
        return CaseResult(
            case, False, control, {}, LogitsDifference(), expected, _error_line(error)
        )
    digests = found.digests()
    if digests == expected or (pair.otter is None and digests.said == expected.said):
        return CaseResult(case, True, control, {}, LogitsDifference(), expected, repeated=repeat)
    # Logits of both are in memory for those that differ alone: the base then runs again.
    moved = difference(*_comparable(case, run_case(case, pair.base), found))
    control = control if repeat else _base_repeats(pair, case)
    return CaseResult(case, False, control, {}, moved, expected)


def _base_repeats(pair: ModelPair, case: Case) -> bool:
    """Whether the base gives the same bits twice in a row."""
    return run_case(case, pair.base).digests() == run_case(case, pair.base).digests()


def poison_cases(
    pair: ModelPair,
    otter: OtterForCausalLM,
    results: list[CaseResult],
    *,
    every_value: bool,
    pace: TimeBudget | None = None,
) -> list[CaseResult]:
    """The same cases poisoned: by NaN each, by the other values each or, for a quick grid, in turn.

    Comes last, for it ruins `otter`: a copy of the inserted tensors to put back would be held all
    the while.
    """
    pace, poisoned = pace or TimeBudget(), list(results)
    ran = [index for index, result in enumerate(results) if not result.failure]
    for turn, value in enumerate(POISON_VALUES):
        fill_with((tensor for _, tensor in otter.inserted_parameters()), value)
        for index in ran:
            if every_value or turn in (0, 1 + index % (len(POISON_VALUES) - 1)):
                if pace.stopped:
                    return poisoned
                poisoned[index] = _poison_case(pair, poisoned[index], value)
                pace.done(estimated_tokens(results[index].case))
    return poisoned


def _poison_case(pair: ModelPair, result: CaseResult, value: str) -> CaseResult:
    try:
        stood = run_case(result.case, pair.other).digests() == result.outputs
    except _REFUSALS as error:
        return replace(result, failure=_error_line(error))
    if not stood and not result.repeated:
        result = replace(result, control=_base_repeats(pair, result.case), repeated=True)
    return replace(result, poison={**result.poison, value: stood})


def _comparable(case: Case, expected: CaseOutputs, found: CaseOutputs) -> tuple[Tensor, Tensor]:
    """The logits of both for the same tokens before them: of texts that part, up to the step in
    which they do, for what follows answers other tokens."""
    if expected.tokens is None or found.tokens is None:
        return expected.logits, found.logits
    parted = (expected.tokens != found.tokens).any(0).nonzero()
    if not len(parted):
        return expected.logits, found.logits
    # Which beam gave a step's logits is not told: all of them share the first step alone.
    steps = 1 if case.path == "beam" else int(parted[0]) - case.length + 1
    return expected.logits[:, :steps], found.logits[:, :steps]


def _error_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
