"""All levels that need models, on one loaded pair."""

from __future__ import annotations

from dataclasses import replace

from otter_cli.verification.bisect import bisect
from otter_cli.verification.cases import Case
from otter_cli.verification.compare import CaseResult, Skipped, compare, poison_cases
from otter_cli.verification.cost import traced_work, work
from otter_cli.verification.locality import check_locality
from otter_cli.verification.pace import Pace
from otter_cli.verification.pair import Pair
from otter_cli.verification.poison import VALUES, poison_each
from otter_cli.verification.report import Report
from otter_cli.verification.selection import Agenda
from otter_cli.verification.structure import compared_layers, trace_path

# Forwards that poisoning each tensor in turn takes, about: a few layers' tensors and groups.
_EACH = 64
_LOCALITY = 24


def run_levels(report: Report, pair: Pair, agenda: Agenda, pace: Pace) -> None:
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
                _trace(report, pair, agenda, ran, pace)
            with cost.of("poison"):
                _each(report, pair, agenda, ran[0], pace)
            with cost.of("locality"):
                _locality(report, pair, agenda, ran[0], pace)
        with cost.of("bisect"):
            _part(report, pair, results)
        if pair.otter is not None:
            with cost.of("poison"):
                results = _poison(pair, agenda, results, pace, every_value=full)
    report.results += results


def planned_work(report: Report, agenda: Agenda) -> int:
    """The work of all levels, estimated in tokens before anything has run."""
    graft = not report.untraced
    runs = 3 if report.request.grid.name == "full" else 2
    poisons = len(VALUES) if report.request.grid.name == "full" else 2
    total = sum(runs * work(case) for case in agenda.cases)
    if not graft:
        return total
    total += sum(poisons * work(case) for case in agenda.cases if agenda.poisons(case))
    total += sum(map(traced_work, agenda.traces))
    if agenda.each and agenda.cases:
        total += _EACH * work(_probe(agenda.cases[0]))
    return total


def _trace(report: Report, pair: Pair, agenda: Agenda, ran: list[Case], pace: Pace) -> None:
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
        pace.done(traced_work(case))


def _probe(case: Case) -> Case:
    # Under eager attention if there is any: fused kernels may take NaN queries for zeros.
    return replace(
        case, path="prefill", length=6, batch=2, padding="left", steps=0, chunk=0, keep=0
    )


def _each(report: Report, pair: Pair, agenda: Agenda, first: Case, pace: Pace) -> None:
    full = report.request.grid.name == "full"
    if pace.stopped or not agenda.each or (report.each and not full):
        return
    assert pair.otter is not None
    values, layers = (VALUES, None) if full else (VALUES[:1], compared_layers(pair.otter))
    probe = _probe(first)
    report.each.append(poison_each(pair, pair.otter, probe, values, layers=layers, pace=pace))


def _locality(report: Report, pair: Pair, agenda: Agenda, first: Case, pace: Pace) -> None:
    if pace.stopped or not agenda.locality:
        return
    assert pair.otter is not None
    report.locality += check_locality(pair.otter, replace(_probe(first), length=12, batch=1))


def _part(report: Report, pair: Pair, results: list[CaseResult]) -> None:
    moved = [r.case for r in results if r.control and not r.equal and not r.failure]
    if moved and report.parting is None:
        report.parting = bisect(pair, min(moved, key=lambda case: case.tokens))


def _poison(
    pair: Pair, agenda: Agenda, results: list[CaseResult], pace: Pace, *, every_value: bool
) -> list[CaseResult]:
    assert pair.otter is not None
    wanted = [result for result in results if agenda.poisons(result.case)]
    poisoned = poison_cases(pair, pair.otter, wanted, every_value=every_value, pace=pace)
    by_case = {result.case: result for result in poisoned}
    return [by_case.get(result.case, result) for result in results]
