"""The levels that run models.

For each device and dtype in turn, a pair of models is loaded and the agenda's work is done on it:
compare, trace, poison, locality, and a bisection where something differs. glibc is told to return
freed activations to the system, so that they do not pile up in the heap."""

from __future__ import annotations

import ctypes
import gc
import sys
from dataclasses import replace
from time import monotonic

from otter_cli.verification import case_runner as pairs
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
from otter_cli.verification.case_runner import ModelPair, main_setting, max_positions, run_case
from otter_cli.verification.compare import CaseResult, Skipped, compare, poison_cases, warm_up
from otter_cli.verification.grid import Case
from otter_cli.verification.locality import check_locality
from otter_cli.verification.poison import POISON_VALUES, poison_each
from otter_cli.verification.report import LeftOut, VerificationReport
from otter_cli.verification.structure import compared_layers, trace_path, traced_cases

# From glibc's malloc.h: mallopt's parameters.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_TRIM_THRESHOLD = 1 << 17  # bytes, the threshold that glibc starts with


def return_freed_blocks() -> None:
    """Has activations go back to the system when they are freed.

    glibc raises its threshold to 32 MB at the first large block that is freed. From then on
    activations lie in one heap with what outlives them, which so grows to a multiple of them:
    100 MB of 470 in a trace of a 109 M base. Elsewhere than on glibc nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(_M_MMAP_THRESHOLD, _TRIM_THRESHOLD)
        library.mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD)


# Forwards that poisoning each tensor in turn takes, about: a few layers' tensors and groups.
_POISON_RUNS = 64
_LOCALITY_LENGTH = 24


def run_levels(
    report: VerificationReport, pair: ModelPair, agenda: Agenda, pace: TimeBudget
) -> None:
    """Compares, traces and poisons what the agenda has for this pair, until `pace` says stop."""
    full = report.request.grid.name == "full"
    cost = report.cost
    with cost.counting([pair.base.model, pair.other.model]):
        with cost.of("logits"):
            compared = list(compare(pair, list(agenda.cases), repeat=full, pace=pace))
        results = [result for result in compared if isinstance(result, CaseResult)]
        report.skipped += [result for result in compared if isinstance(result, Skipped)]
        ran = [result.case for result in results if not result.failure]
        if pair.otter is not None and ran:
            with cost.of("trace"):
                _trace_level(report, pair, agenda, ran, pace)
            with cost.of("poison"):
                _poison_each_level(report, pair, agenda, ran[0], pace)
            with cost.of("locality"):
                _locality_level(report, pair, agenda, ran[0], pace)
        with cost.of("bisect"):
            _bisect_level(report, pair, results)
        if pair.otter is not None:
            with cost.of("poison"):
                results = _poison_level(pair, agenda, results, pace, every_value=full)
    report.results += results


def planned_work(report: VerificationReport, agenda: Agenda) -> int:
    """The work of all levels, estimated in tokens before anything has run."""
    graft = not report.untraced
    runs = 3 if report.request.grid.name == "full" else 2
    poisons = len(POISON_VALUES) if report.request.grid.name == "full" else 2
    total = sum(runs * estimated_tokens(case) for case in agenda.cases)
    if not graft:
        return total
    total += sum(poisons * estimated_tokens(case) for case in agenda.cases if agenda.poisons(case))
    total += sum(map(estimated_trace_tokens, agenda.traces))
    if agenda.each and agenda.cases:
        total += _POISON_RUNS * estimated_tokens(_poison_case(agenda.cases[0]))
    return total


def _trace_level(
    report: VerificationReport, pair: ModelPair, agenda: Agenda, ran: list[Case], pace: TimeBudget
) -> None:
    otter = pair.otter
    assert otter is not None
    layers = () if report.request.grid.name == "full" else compared_layers(otter)
    settings = {(case.dtype, case.attention, case.device) for case in ran}
    for case in agenda.traces:
        if (case.dtype, case.attention, case.device) not in settings:
            continue
        if pace.stopped:
            return
        report.paths.append(trace_path(pair, otter, case, layers=layers))
        pace.done(estimated_trace_tokens(case))


def _poison_case(case: Case) -> Case:
    # Under eager attention if there is any: fused kernels may take NaN queries for zeros.
    return replace(
        case, path="prefill", length=6, batch=2, padding="left", steps=0, chunk=0, keep=0
    )


def _poison_each_level(
    report: VerificationReport, pair: ModelPair, agenda: Agenda, first: Case, pace: TimeBudget
) -> None:
    full = report.request.grid.name == "full"
    if pace.stopped or not agenda.each or (report.each and not full):
        return
    assert pair.otter is not None
    values, layers = (
        (POISON_VALUES, None) if full else (POISON_VALUES[:1], compared_layers(pair.otter))
    )
    probe = _poison_case(first)
    report.each.append(poison_each(pair, pair.otter, probe, values, layers=layers, pace=pace))


def _locality_level(
    report: VerificationReport, pair: ModelPair, agenda: Agenda, first: Case, pace: TimeBudget
) -> None:
    if pace.stopped or not agenda.locality:
        return
    assert pair.otter is not None
    report.locality += check_locality(pair.otter, replace(_poison_case(first), length=12, batch=1))


def _bisect_level(report: VerificationReport, pair: ModelPair, results: list[CaseResult]) -> None:
    moved = [r.case for r in results if r.control and not r.equal and not r.failure]
    if moved and report.parting is None:
        report.parting = bisect(pair, min(moved, key=lambda case: case.tokens))


def _poison_level(
    pair: ModelPair,
    agenda: Agenda,
    results: list[CaseResult],
    pace: TimeBudget,
    *,
    every_value: bool,
) -> list[CaseResult]:
    assert pair.otter is not None
    wanted = [result for result in results if agenda.poisons(result.case)]
    poisoned = poison_cases(pair, pair.otter, wanted, every_value=every_value, pace=pace)
    by_case = {result.case: result for result in poisoned}
    return [by_case.get(result.case, result) for result in results]


def run_models(report: VerificationReport, pace: TimeBudget) -> None:
    """Adds to the report what the models show, and what was left out."""
    return_freed_blocks()
    if report.request.grid.main is None:
        grid = report.request.grid.around(*main_setting(report.request.against))
        report.request = replace(report.request, grid=grid)
    request = report.request
    whole = _whole_agenda(report)
    agenda = _agenda_of_proof(report, whole)
    weighed = not request.budget or request.only is not None
    shared = report.static.holds and not request.independent
    with pace.showing(planned_work(report, agenda)):
        for device, dtype in whole.groups:
            part = agenda.of(device, dtype)
            if pace.stopped or not part.cases:
                continue
            # Modules refer to one another, and the last dtype's would lie beside this one's:
            # neither kept in a name nor left to a collector that counts objects and not bytes.
            gc.collect()
            started = monotonic()
            pair = pairs.open_pair(request, dtype=dtype, device=device, shared=shared)
            if not weighed:
                weighed, agenda = (
                    True,
                    _agenda_within_budget(report, pair, whole, pace, monotonic() - started),
                )
                part = agenda.of(device, dtype)
            run_levels(report, pair, part, pace)
            del pair
    why = "as in the proof" if request.only else pace.stopped or BUDGET_SPENT
    report.left_out = _left_out(report, whole, why)


def _whole_agenda(report: VerificationReport) -> Agenda:
    request = report.request
    window = max_positions(request.against)
    cases = request.grid.cases(window)
    report.cost.longest = max(case.length for case in cases)
    traces = [] if report.untraced else traced_cases(cases, window, request.grid)
    return Agenda(tuple(cases), tuple(traces))


def _agenda_of_proof(report: VerificationReport, whole: Agenda) -> Agenda:
    """Of a proof that left something out, what it did."""
    only = report.request.only
    return whole.only(only) if only else whole


def _agenda_within_budget(
    report: VerificationReport, pair: ModelPair, whole: Agenda, pace: TimeBudget, load: float
) -> Agenda:
    """The part of the agenda that fits the budget, at the rate of a first forward."""
    first = min(whole.of(*whole.groups[0]).cases, key=estimated_tokens)
    warm_up(pair, [first])
    started = monotonic()
    run_case(first, pair.base)
    rate = (monotonic() - started) / estimated_tokens(first)
    grid = report.request.grid
    return fit_budget(
        whole, pace.left, rate, load, lambda case: grid.departures(case.dtype, case.attention)
    )


def _left_out(report: VerificationReport, whole: Agenda, why: str) -> LeftOut | None:
    """What of the whole grid was not done; None where all of it was."""
    compared = set(map(case_name, report.compared))
    # Of a setting that the base does not know, nothing can be traced.
    unknown = {each.case.setting for each in report.skipped} - {
        each.case.setting for each in report.results if not each.failure
    }
    traced = {case_name(path.case) for path in report.paths}
    graft = not report.untraced and bool(report.results)
    left = LeftOut(
        why,
        cases=tuple(case_name(case) for case in whole.cases if case_name(case) not in compared),
        traces=tuple(
            case_name(case)
            for case in whole.traces
            if case_name(case) not in traced and case.setting not in unknown
        ),
        poison=tuple(
            case_name(result.case)
            for result in report.results
            if graft and not result.poison and not result.failure
        ),
        levels=("poison of each tensor",) if graft and not report.each else (),
    )
    return left if left.cases or left.traces or left.poison or left.levels else None
