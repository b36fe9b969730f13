"""A verification as a report: the levels, the grid, and where the two models first differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from otter_cli.core.formatting import count_text, percent_text, seconds_text
from otter_cli.reports.page import Cell, Report, ReportSection, ReportTable
from otter_cli.verification.report import Verdict
from otter_cli.verification.report import VerificationReport as Verification

if TYPE_CHECKING:
    from otter_cli.verification.bisect import FirstDifference
    from otter_cli.verification.compare import CaseResult


_SHOWN_FINDINGS = 12


def verification_report(report: Verification, verdict: Verdict) -> Report:
    """The proof as a page of its own, the verdict last."""
    request, grid = report.request, report.request.grid
    lead = f"{len(report.results)} cases of the {grid.name} grid, seed {grid.seed}"
    cell = _verdict_cell(verdict.name, verdict.passes("grid"))
    table = ReportTable(["verdict", "why"], [[cell, verdict.sentence]], numeric=False)
    sections = [*verification_sections(report), ReportSection("Verdict", tables=[table])]
    return Report(f"{request.folder} beside {request.base_folder}", lead, sections)


def verification_sections(report: Verification) -> Iterator[ReportSection]:
    """The levels, the grid, and where the two models first differ."""
    levels = ReportTable(["level", "found"], list(_level_rows(report)), numeric=False)
    yield ReportSection("Levels", tables=[levels])
    if report.static.findings:
        yield ReportSection("What differs on disk", list(_finding_lines(report)))
    if report.results:
        by_path = _cases_table(report.results, "path", lambda result: result.case.kind)
        by_setting = _cases_table(report.results, "setting", lambda result: result.case.setting)
        yield ReportSection("Logits beside the base's, bit for bit", tables=[by_path, by_setting])
    if report.first_difference:
        yield ReportSection(
            "Where they first differ", list(_parting_lines(report.first_difference))
        )


def _level_rows(report: Verification) -> Iterator[list[Cell | str]]:
    static = report.static
    on_disk = f"{static.files} files, {static.tensors} tensors, {static.inserted} inserted ones"
    count = len(static.findings)
    findings = f"{count or 'no'} finding{'' if count == 1 else 's'}"
    yield ["static", _verdict_cell(f"{on_disk}: {findings}", static.holds)]
    for note in static.notes:
        yield ["", note]
    if report.request.static_only:
        return
    if report.untraced or report.unrun:
        yield ["structural", f"not available: {report.unrun or report.untraced}"]
    for path in report.leaks:
        yield ["structural", _verdict_cell(f"{path.case}: {path.leak}", False)]
    if report.paths and not report.leaks:
        operations = count_text(sum(path.operations for path in report.paths))
        text = (
            f"{len(report.paths)} paths, {operations} operations of the base: the same as without "
            f"the insertion, and none reads the insertion's results{_compared_layers(report)}"
        )
        yield ["structural", _verdict_cell(text, True)]
    if report.skipped:
        first = report.skipped[0]
        cases = f"{len(report.skipped)} cases that the base cannot run"
        yield ["left out", f"{cases}: {first.case}: {first.reason}"]
    if report.results and report.repeated < len(report.results):
        implied = len(report.results) - report.repeated
        text = f"in {implied} cases the graft's run, which gave the base's bits again"
        yield ["control", text]
    yield from _poison_rows(report)
    for place in report.locality:
        compared = f"{place.compared} comparisons: a change at position s shows at s alone"
        cell = _verdict_cell(place.failure or compared, place.failure is None)
        yield [f"locality of {place.insertion}", cell]
    if report.left_out:
        yield ["not done", _verdict_cell(f"{report.left_out} ({report.left_out.why})", False)]
    cost = report.cost
    if cost.forwards:
        counted = f"{count_text(cost.tokens)} tokens in {count_text(cost.forwards)} forwards"
        multiple = f"{cost.multiple:.1f} forwards of the longest window ({cost.longest} tokens)"
        took = seconds_text(report.seconds)
        yield ["cost", f"{counted}, the tokens of {multiple}; {took}"]
    for setting, backend in report.streams.items():
        yield ["stream", f"{setting}: {backend}"]


def _compared_layers(report: Verification) -> str:
    partly = next((path for path in report.paths if path.layers), None)
    if partly is None:
        return ""
    passed = count_text(sum(path.passed for path in report.paths))
    layers = ", ".join(map(str, partly.layers))
    return (
        f"; compared in layers {layers} of {partly.depth}, which represent the others of their "
        f"kinds; of {passed} operations in those, none reads them either"
    )


def _poison_rows(report: Verification) -> Iterator[list[Cell | str]]:
    for poison in report.poison_each:
        together = poison.together
        shared = f", {poison.grouped} of them in {together} groups" if together else ""
        moved = f"; {poison.moved[1]} in {poison.moved[0]} moves logits" if poison.moved else ""
        text = (
            f"{poison.equal} of {poison.runs} leave the logits unchanged: {poison.tensors} tensors "
            f"in turn{shared} ({', '.join(poison.values)}){moved}"
        )
        yield ["poison", _verdict_cell(text, poison.moved is None)]


def _finding_lines(report: Verification) -> Iterator[str]:
    findings = report.static.findings
    yield from map(str, findings[:_SHOWN_FINDINGS])
    if len(findings) > _SHOWN_FINDINGS:
        yield f"and {len(findings) - _SHOWN_FINDINGS} more, all of them in proof.json"


def _cases_table(
    results: list[CaseResult], name: str, key: Callable[[CaseResult], str]
) -> ReportTable:
    groups: dict[str, list[CaseResult]] = {}
    for result in results:
        groups.setdefault(key(result), []).append(result)
    columns = [name, "equal", "control", "poison", "largest difference", "logits that moved"]
    return ReportTable(columns, [_cases_row(label, group) for label, group in groups.items()])


def _cases_row(label: str, group: list[CaseResult]) -> list[Cell | str]:
    moved = [result.difference for result in group if not result.equal]
    compared = sum(result.difference.compared for result in group)
    changed = sum(difference.changed for difference in moved)
    not_finite = any(difference.not_finite for difference in moved)
    largest = max((difference.largest for difference in moved), default=0.0)
    ulp = max((difference.ulp for difference in moved), default=0)
    return [
        label,
        _share_cell([result.equal for result in group]),
        _share_cell([result.control for result in group]),
        _share_cell([all(result.poison.values()) for result in group if result.poison]),
        "not finite" if not_finite else f"{largest:.2g} ({ulp} ulp)" if moved else "0",
        percent_text(changed / compared) if changed else "0",
    ]


def _parting_lines(parting: FirstDifference) -> Iterator[str]:
    layer = "" if parting.layer is None else f" (layer {parting.layer})"
    yield f"in the case {parting.case}"
    yield f"first: {parting.operation} in {parting.module or 'no module'}{layer} {parting.what}"
    if parting.ulp is not None:
        yield f"largest difference there: {parting.ulp} ulp, {parting.largest:.2g}"
    logits = parting.logits
    if logits.first is not None:
        row, position = logits.first
        yield (
            f"at the end: {logits.changed} of {logits.compared} logits and {logits.argmaxes} of "
            f"{logits.rows} argmaxes differ, from row {row}, position {position} on"
        )


def _share_cell(flags: list[bool]) -> Cell | str:
    if not flags:
        return "-"
    return _verdict_cell(f"{sum(flags)}/{len(flags)}", all(flags))


def _verdict_cell(text: str, good: bool) -> Cell:
    return Cell(text, tone="good" if good else "bad")
