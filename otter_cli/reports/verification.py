"""A verification as a report: the levels, the grid, and where the two models part."""

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


def verification_report(found: Verification, verdict: Verdict) -> Report:
    """The proof as a page of its own, the verdict last."""
    request = found.request
    sections = [*verification_sections(found), _verdict_section(verdict)]
    lead = f"{len(found.results)} cases of the {request.grid.name} grid, seed {request.grid.seed}"
    return Report(f"{request.folder} beside {request.against}", lead, sections)


def verification_sections(found: Verification) -> Iterator[ReportSection]:
    """The levels, the grid, and where the two models part."""
    yield ReportSection(
        "Levels", tables=[ReportTable(["level", "found"], [*_level_rows(found)], numeric=False)]
    )
    if found.static.findings:
        yield ReportSection("What differs on disk", [*_finding_lines(found)])
    if found.results:
        by_path = _cases_table(found.results, "path", lambda result: result.case.kind)
        by_setting = _cases_table(found.results, "setting", lambda result: result.case.setting)
        yield ReportSection("Logits beside the base's, bit for bit", tables=[by_path, by_setting])
    if found.parting:
        yield ReportSection("Where they part", [*_parting_lines(found.parting)])


def _verdict_section(verdict: Verdict) -> ReportSection:
    cell = Cell(verdict.name, tone="good" if verdict.passes("grid") else "bad")
    table = ReportTable(["verdict", "why"], [[cell, verdict.sentence]], numeric=False)
    return ReportSection("Verdict", tables=[table])


def _level_rows(found: Verification) -> Iterator[list[Cell | str]]:
    static = found.static
    on_disk = f"{static.files} files, {static.tensors} tensors, {static.inserted} inserted ones"
    yield [
        "static",
        _verdict_cell(f"{on_disk}: {_count(len(static.findings), 'finding')}", static.holds),
    ]
    for note in static.notes:
        yield ["", note]
    if found.request.static_only:
        return
    if found.untraced or found.unrun:
        yield ["structural", f"not available: {found.unrun or found.untraced}"]
    for path in found.leaks:
        yield ["structural", Cell(f"{path.case}: {path.leak}", tone="bad")]
    if found.paths and not found.leaks:
        operations = sum(path.operations for path in found.paths)
        yield [
            "structural",
            _verdict_cell(
                f"{len(found.paths)} paths, {count_text(operations)} operations of the base: the "
                f"same as without the insertion, and none reads what it "
                f"made{_compared_layers(found)}",
                True,
            ),
        ]
    if found.skipped:
        first = found.skipped[0]
        told = f"{len(found.skipped)} cases that the base cannot run: {first.case}: {first.reason}"
        yield ["left out", told]
    if found.results and found.repeated < len(found.results):
        implied = len(found.results) - found.repeated
        yield ["control", f"in {implied} cases the graft's run, which gave the base's bits again"]
    yield from _poison_rows(found)
    for place in found.locality:
        told = place.failure or f"{place.compared} comparisons: what is at s shows at s alone"
        yield [f"locality of {place.insertion}", _verdict_cell(told, place.failure is None)]
    if found.left_out:
        why = Cell(f"{found.left_out} ({found.left_out.why})", tone="bad")
        yield ["not done", why]
    yield from _cost_rows(found)


def _compared_layers(found: Verification) -> str:
    partly = next((path for path in found.paths if path.layers), None)
    if partly is None:
        return ""
    passed = sum(path.passed for path in found.paths)
    layers = ", ".join(map(str, partly.layers))
    return (
        f"; compared in layers {layers} of {partly.depth}, which stand for the others of their "
        f"kinds; of {count_text(passed)} operations in those, none reads it either"
    )


def _cost_rows(found: Verification) -> Iterator[list[Cell | str]]:
    cost = found.cost
    if cost.forwards:
        counted = f"{count_text(cost.tokens)} tokens in {count_text(cost.forwards)} forwards"
        multiple = f"{cost.multiple:.1f} forwards of the longest window ({cost.longest} tokens)"
        took = seconds_text(found.seconds)
        yield ["cost", f"{counted}, the tokens of {multiple}; {took}"]


def _poison_rows(found: Verification) -> Iterator[list[Cell | str]]:
    for each in found.each:
        shared = f", {each.grouped} of them in {each.together} groups" if each.together else ""
        what = f"{each.equal} of {each.runs} stand still: {each.tensors} tensors in turn{shared}"
        moved = f"; {each.moved[1]} in {each.moved[0]} moves logits" if each.moved else ""
        told = f"{what} ({', '.join(each.values)}){moved}"
        yield ["poison", _verdict_cell(told, each.moved is None)]


def _finding_lines(found: Verification) -> Iterator[str]:
    findings = found.static.findings
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
        yield f"there by up to {parting.ulp} ulp, {parting.largest:.2g}"
    logits = parting.logits
    if logits.first is not None:
        row, position = logits.first
        yield (
            f"in the end {logits.changed} of {logits.compared} logits and {logits.argmaxes} of "
            f"{logits.rows} argmaxes, from row {row}, position {position} on"
        )


def _share_cell(flags: list[bool]) -> Cell | str:
    if not flags:
        return "-"
    return _verdict_cell(f"{sum(flags)}/{len(flags)}", all(flags))


def _verdict_cell(text: str, good: bool) -> Cell:
    return Cell(text, tone="good" if good else "bad")


def _count(count: int, name: str) -> str:
    return f"{count or 'no'} {name}{'' if count == 1 else 's'}"
