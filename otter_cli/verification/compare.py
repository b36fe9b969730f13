"""The grid level: each case run on the base, on the candidate, and on the poisoned graft."""

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

# What transformers raises for a case that a model does not support, such as a static cache. Errors
# of other classes are faults, and end the verification.
_UNSUPPORTED = (ValueError, TypeError, AttributeError, RuntimeError, OtterError)


@dataclass(frozen=True)
class CaseResult:
    """One compared case.

    `control`: the base equals itself. `poison`: by value, whether the outputs stayed unchanged.
    `outputs`: digests of the base's outputs. `failure`: the error of the candidate. `repeated`:
    the base ran twice. Without that, an equal run of the candidate is the control.
    """

    case: Case
    equal: bool
    control: bool
    poison: dict[str, bool]
    difference: LogitsDifference
    outputs: OutputDigests
    failure: str = ""
    repeated: bool = True

    def record(self) -> dict[str, Any]:
        return asdict(self) | ({"difference": None} if self.equal else {})


@dataclass(frozen=True)
class Skipped:
    """A case that the base itself cannot run, so there is nothing to compare with."""

    case: Case
    reason: str


def compare(
    pair: ModelPair, cases: list[Case], *, repeat: bool = True, budget: TimeBudget | None = None
) -> Iterator[CaseResult | Skipped]:
    """Runs each case on both models. With `repeat`, the base runs twice in every case. Without it,
    only where the candidate differs: an equal run of that model shows that the base repeats
    itself."""
    budget = budget or TimeBudget()
    warm_up(pair, cases)
    for case in cases:
        if budget.stop_reason:
            return
        yield _compare_case(pair, case, repeat)
        budget.advance(estimated_tokens(case) * (3 if repeat else 2))


def warm_up(pair: ModelPair, cases: list[Case]) -> None:
    """Runs one case for each number of threads, without using its outputs.

    The first pass of a process with several threads may round otherwise than all later ones: stock
    transformers on a CPU, in four processes of ten (torch 2.13, 0.6 B parameters, two threads).
    """
    for case in {case.threads: case for case in reversed(cases)}.values():
        with suppress(*_UNSUPPORTED):
            run_case(case, pair.base)


def _compare_case(pair: ModelPair, case: Case, repeat: bool) -> CaseResult | Skipped:
    try:
        expected = run_case(case, pair.base).digests()
    except _UNSUPPORTED as error:
        return Skipped(case, _error_line(error))
    # The control runs before the candidate, which may change the state of shared modules.
    control = not repeat or run_case(case, pair.base).digests() == expected
    failure, logits = "", LogitsDifference()
    try:
        outputs = run_case(case, pair.candidate)
    except _UNSUPPORTED as error:
        failure = _error_line(error)
    else:
        digests = outputs.digests()
        if digests == expected or (pair.otter is None and digests.said == expected.said):
            return CaseResult(case, True, control, {}, logits, expected, repeated=repeat)
        # Only differing logits are kept in memory, so the base runs again.
        logits = difference(*_comparable(case, run_case(case, pair.base), outputs))
    control = control if repeat else _base_repeats(pair, case)
    return CaseResult(case, False, control, {}, logits, expected, failure)


def _base_repeats(pair: ModelPair, case: Case) -> bool:
    """Whether the base gives the same bits twice in a row."""
    return run_case(case, pair.base).digests() == run_case(case, pair.base).digests()


def poison_cases(
    pair: ModelPair,
    otter: OtterForCausalLM,
    results: list[CaseResult],
    *,
    every_value: bool,
    budget: TimeBudget | None = None,
) -> list[CaseResult]:
    """Runs the cases again with all inserted tensors poisoned: each case with NaN, and with every
    other value or, for a quick grid, with one of them in turn.

    This comes last because it destroys the tensors of `otter`. A copy to restore would take memory
    during the whole verification.
    """
    budget, poisoned = budget or TimeBudget(), list(results)
    ran = [index for index, result in enumerate(results) if not result.failure]
    for turn, value in enumerate(POISON_VALUES):
        fill_with((tensor for _, tensor in otter.inserted_parameters()), value)
        for index in ran:
            if every_value or turn in (0, 1 + index % (len(POISON_VALUES) - 1)):
                if budget.stop_reason:
                    return poisoned
                poisoned[index] = _poison_case(pair, poisoned[index], value)
                budget.advance(estimated_tokens(results[index].case))
    return poisoned


def _poison_case(pair: ModelPair, result: CaseResult, value: str) -> CaseResult:
    try:
        unchanged = run_case(result.case, pair.candidate).digests() == result.outputs
    except _UNSUPPORTED as error:
        return replace(result, failure=_error_line(error))
    if not unchanged and not result.repeated:
        result = replace(result, control=_base_repeats(pair, result.case), repeated=True)
    return replace(result, poison={**result.poison, value: unchanged})


def _comparable(case: Case, expected: CaseOutputs, outputs: CaseOutputs) -> tuple[Tensor, Tensor]:
    """The logits of both models that follow the same tokens. Where generated texts differ, these
    are the steps up to the first different token."""
    if expected.tokens is None or outputs.tokens is None:
        return expected.logits, outputs.logits
    different = (expected.tokens != outputs.tokens).any(0).nonzero()
    if not len(different):
        return expected.logits, outputs.logits
    # It is not known which beam gave a step's logits. All beams share only the first step.
    steps = 1 if case.path == "beam" else int(different[0]) - case.length + 1
    return expected.logits[:, :steps], outputs.logits[:, :steps]


def _error_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
