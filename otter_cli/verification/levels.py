"""The levels that run models.

For each device and dtype in turn, a pair of models is loaded and the agenda's work is done on it:
compare, trace, poison each tensor, locality, bisect where something differs, poison every case.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from dataclasses import dataclass, replace
from time import monotonic
from typing import TYPE_CHECKING

from otter_cli.accel.stream_path import model_stream_path
from otter_cli.verification.agenda import (
    BUDGET_SPENT,
    Agenda,
    TimeBudget,
    case_name,
    estimated_tokens,
    estimated_trace_tokens,
    fit_budget,
)
from otter_cli.verification.bisect import bisect
from otter_cli.verification.case_runner import (
    ModelPair,
    main_setting,
    max_positions,
    open_pair,
    run_case,
)
from otter_cli.verification.compare import CaseResult, Skipped, compare, poison_cases, warm_up
from otter_cli.verification.grid import Case
from otter_cli.verification.poison import POISON_VALUES, check_locality, poison_each
from otter_cli.verification.report import LeftOut, VerificationReport
from otter_cli.verification.structure import compared_layers, trace_path, traced_cases

if TYPE_CHECKING:
    from otter_cli.model.otter import OtterForCausalLM

# Parameters of mallopt in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_TRIM_THRESHOLD = 1 << 17  # bytes: the threshold that glibc starts with

# Forwards that poisoning each tensor in turn takes, about: a few layers' tensors and groups.
_POISON_RUNS = 64


def run_models(report: VerificationReport, budget: TimeBudget) -> None:
    """Adds to the report what the models show, and what was left out."""
    _return_freed_memory()
    if report.request.grid.main is None:
        grid = report.request.grid.around(*main_setting(report.request.base_folder))
        report.request = replace(report.request, grid=grid)
    request = report.request
    window = max_positions(request.base_folder)
    cases = request.grid.cases(window)
    report.cost.longest = max(case.length for case in cases)
    traces = [] if report.untraced else traced_cases(cases, window, request.grid)
    whole = Agenda(tuple(cases), tuple(traces))
    agenda = whole.only(request.only) if request.only else whole
    must_fit = bool(request.budget) and request.only is None
    shared = report.static.holds and not request.independent
    with budget.show_progress(_planned_tokens(report, agenda)):
        for device, dtype in whole.pairs:
            if budget.stop_reason or not agenda.for_pair(device, dtype).cases:
                continue
            # Modules refer to one another, so the last pair's are freed by a collection only.
            # Without it they would lie in memory beside this pair's.
            gc.collect()
            started = monotonic()
            pair = open_pair(request, dtype=dtype, device=device, shared=shared)
            if must_fit:
                load, must_fit = monotonic() - started, False
                agenda = _fitting_agenda(report, pair, whole, budget, load)
            _PairLevels(report, pair, agenda.for_pair(device, dtype), budget).run()
            del pair
    why = "as in the proof" if request.only else budget.stop_reason or BUDGET_SPENT
    report.left_out = _left_out(report, whole, why)


def _return_freed_memory() -> None:
    """Has glibc return freed activations to the system. Elsewhere nothing happens.

    glibc raises its threshold to 32 MB at the first large block that is freed. From then on
    activations lie in one heap with longer-lived blocks, and the heap grows to a multiple of them:
    100 MB of 470 in a trace of a base with 109 M parameters.
    """
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(_M_MMAP_THRESHOLD, _TRIM_THRESHOLD)
        library.mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD)


def _planned_tokens(report: VerificationReport, agenda: Agenda) -> int:
    """The estimated work of all levels, in tokens."""
    full = report.request.grid.name == "full"
    total = (3 if full else 2) * sum(map(estimated_tokens, agenda.cases))
    if report.untraced:
        return total
    poisons = len(POISON_VALUES) if full else 2
    total += poisons * sum(map(estimated_tokens, filter(agenda.poisons, agenda.cases)))
    total += sum(map(estimated_trace_tokens, agenda.traces))
    if agenda.poison_each and agenda.cases:
        total += _POISON_RUNS * estimated_tokens(_poison_case(agenda.cases[0]))
    return total


def _fitting_agenda(
    report: VerificationReport, pair: ModelPair, whole: Agenda, budget: TimeBudget, load: float
) -> Agenda:
    """The part of the agenda that fits the budget, at the rate of a first forward."""
    first = min(whole.for_pair(*whole.pairs[0]).cases, key=estimated_tokens)
    warm_up(pair, [first])
    started = monotonic()
    run_case(first, pair.base)
    rate = (monotonic() - started) / estimated_tokens(first)
    grid = report.request.grid
    return fit_budget(
        whole,
        budget.seconds_left,
        rate,
        load,
        lambda case: grid.departures(case.dtype, case.attention),
    )


def _stream_paths(otter: OtterForCausalLM, ran: list[Case]) -> dict[str, str]:
    """What runs the streams of the cases, by dtype and attention."""
    return {
        f"{case.dtype}, {case.attention}": model_stream_path(otter, attention=case.attention)
        for case in ran
    }


def _poison_case(case: Case) -> Case:
    """A short, padded prefill in the setting of `case`."""
    return replace(
        case, path="prefill", length=6, batch=2, padding="left", steps=0, chunk=0, keep=0
    )


@dataclass(frozen=True)
class _PairLevels:
    """All levels for one pair of models, until the budget says stop."""

    report: VerificationReport
    pair: ModelPair
    agenda: Agenda
    budget: TimeBudget

    @property
    def full(self) -> bool:
        return self.report.request.grid.name == "full"

    def run(self) -> None:
        report, pair, otter, budget = self.report, self.pair, self.pair.otter, self.budget
        cost = report.cost
        with cost.counting([pair.base.model, pair.candidate.model]):
            with cost.of("logits"):
                compared = list(
                    compare(pair, list(self.agenda.cases), repeat=self.full, budget=budget)
                )
            results = [result for result in compared if isinstance(result, CaseResult)]
            report.skipped += [result for result in compared if isinstance(result, Skipped)]
            ran = [result.case for result in results if not result.failure]
            if otter is not None and ran:
                report.streams |= _stream_paths(otter, ran)
                layers = () if self.full else compared_layers(otter)
                with cost.of("trace"):
                    self._trace(ran, layers)
                # Under eager attention if the grid has it: fused kernels may take NaN for zero.
                probe = _poison_case(ran[0])
                with cost.of("poison"):
                    if self.agenda.poison_each and (self.full or not report.poison_each):
                        self._poison_each(probe, layers)
                with cost.of("locality"):
                    if self.agenda.locality and not budget.stop_reason:
                        case = replace(probe, length=12, batch=1)
                        report.locality += check_locality(otter, case)
            with cost.of("bisect"):
                moved = [r.case for r in results if r.control and not r.equal and not r.failure]
                if moved and report.first_difference is None:
                    shortest = min(moved, key=lambda case: case.tokens)
                    report.first_difference = bisect(pair, shortest)
            if otter is not None:
                with cost.of("poison"):
                    results = self._poison_cases(results)
        report.results += results

    def _trace(self, ran: list[Case], layers: tuple[int, ...]) -> None:
        otter, settings = self.pair.otter, {case.setting for case in ran}
        assert otter is not None
        for case in self.agenda.traces:
            if case.setting not in settings:
                continue
            if self.budget.stop_reason:
                return
            self.report.paths.append(trace_path(self.pair, otter, case, layers=layers))
            self.budget.advance(estimated_trace_tokens(case))

    def _poison_each(self, probe: Case, layers: tuple[int, ...]) -> None:
        if self.budget.stop_reason:
            return
        assert self.pair.otter is not None
        values = POISON_VALUES if self.full else POISON_VALUES[:1]
        self.report.poison_each.append(
            poison_each(
                self.pair,
                self.pair.otter,
                probe,
                values,
                layers=None if self.full else layers,
                budget=self.budget,
            )
        )

    def _poison_cases(self, results: list[CaseResult]) -> list[CaseResult]:
        assert self.pair.otter is not None
        poisoned = poison_cases(
            self.pair,
            self.pair.otter,
            [result for result in results if self.agenda.poisons(result.case)],
            every_value=self.full,
            budget=self.budget,
        )
        by_case = {result.case: result for result in poisoned}
        return [by_case.get(result.case, result) for result in results]


def _left_out(report: VerificationReport, whole: Agenda, why: str) -> LeftOut | None:
    """The work of the whole grid that was not done. None where all of it was done."""
    compared = set(map(case_name, report.compared))
    # Nothing can be traced in a setting in which the base does not run.
    runs = {result.case.setting for result in report.results if not result.failure}
    unsupported = {skipped.case.setting for skipped in report.skipped} - runs
    traced = {case_name(path.case) for path in report.paths}
    is_graft = not report.untraced and bool(report.results)
    left = LeftOut(
        why,
        cases=tuple(name for name in map(case_name, whole.cases) if name not in compared),
        traces=tuple(
            case_name(case)
            for case in whole.traces
            if case_name(case) not in traced and case.setting not in unsupported
        ),
        poison=tuple(
            case_name(result.case)
            for result in report.results
            if is_graft and not result.poison and not result.failure
        ),
        levels=("poison of each tensor",) if is_graft and not report.poison_each else (),
    )
    return left if left.cases or left.traces or left.poison or left.levels else None
