"""The levels that run models: on each pair that is loaded in turn, what the agenda has for it."""

from __future__ import annotations

import gc
from dataclasses import replace
from time import monotonic

from otter_cli.verification import pair as pairs
from otter_cli.verification.compare import warm_up
from otter_cli.verification.cost import work
from otter_cli.verification.heap import return_freed_blocks
from otter_cli.verification.levels import planned_work, run_levels
from otter_cli.verification.pace import SPENT, Pace
from otter_cli.verification.pair import Pair, main_setting, positions
from otter_cli.verification.report import LeftOut, Report
from otter_cli.verification.run import run
from otter_cli.verification.selection import Agenda, name, within
from otter_cli.verification.structure import traced_cases


def run_models(report: Report, pace: Pace) -> None:
    """Adds to the report what the models show, and what was left out."""
    return_freed_blocks()
    if report.request.grid.main is None:
        grid = report.request.grid.around(*main_setting(report.request.against))
        report.request = replace(report.request, grid=grid)
    request = report.request
    whole = _agenda(report)
    agenda = _chosen(report, whole)
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
                weighed, agenda = True, _fitting(report, pair, whole, pace, monotonic() - started)
                part = agenda.of(device, dtype)
            run_levels(report, pair, part, pace)
            del pair
    why = "as in the proof" if request.only else pace.stopped or SPENT
    report.left_out = _left_out(report, whole, why)


def _agenda(report: Report) -> Agenda:
    request = report.request
    window = positions(request.against)
    cases = request.grid.cases(window)
    report.cost.longest = max(case.length for case in cases)
    traces = [] if report.untraced else traced_cases(cases, window, request.grid)
    return Agenda(tuple(cases), tuple(traces))


def _chosen(report: Report, whole: Agenda) -> Agenda:
    """Of a proof that left something out, what it did."""
    only = report.request.only
    return whole.only(only) if only else whole


def _fitting(report: Report, pair: Pair, whole: Agenda, pace: Pace, load: float) -> Agenda:
    """The part of the agenda that fits the budget, at the rate of a first forward."""
    first = min(whole.of(*whole.groups[0]).cases, key=work)
    warm_up(pair, [first])
    started = monotonic()
    run(first, pair.base)
    rate = (monotonic() - started) / work(first)
    grid = report.request.grid
    return within(
        whole, pace.left, rate, load, lambda case: grid.departures(case.dtype, case.attention)
    )


def _left_out(report: Report, whole: Agenda, why: str) -> LeftOut | None:
    """What of the whole grid was not done; None where all of it was."""
    compared = set(map(name, report.compared))
    # Of a setting that the base does not know, nothing can be traced.
    unknown = {each.case.setting for each in report.skipped} - {
        each.case.setting for each in report.results if not each.failure
    }
    traced = {name(path.case) for path in report.paths}
    graft = not report.untraced and bool(report.results)
    left = LeftOut(
        why,
        cases=tuple(name(case) for case in whole.cases if name(case) not in compared),
        traces=tuple(
            name(case)
            for case in whole.traces
            if name(case) not in traced and case.setting not in unknown
        ),
        poison=tuple(
            name(result.case)
            for result in report.results
            if graft and not result.poison and not result.failure
        ),
        levels=("poison of each tensor",) if graft and not report.each else (),
    )
    return left if left.cases or left.traces or left.poison or left.levels else None
