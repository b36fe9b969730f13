"""What the harness measured, as sections of a report."""

from __future__ import annotations

from collections.abc import Iterator

from otter_cli.benchmarks.estimates import Estimate
from otter_cli.benchmarks.lm_eval.result import BASE, GUIDED, LmEvalResult
from otter_cli.reports.page import Cell, Report, Section, Table


def lm_eval_report(result: LmEvalResult) -> Report:
    settings = result.settings
    cut = f", {settings.limit} documents of each" if settings.limit else ""
    return Report(
        f"lm-eval: {settings.folder}",
        f"{', '.join(settings.tasks)}{cut}; batch {settings.batch}, "
        f"{settings.dtype or 'the base’s dtype'} on {settings.device}",
        list(_sections(result)),
        [(name, version) for name, version in result.provenance["versions"].items()],
        result.model_dump(mode="json"),
    )


def _sections(result: LmEvalResult) -> Iterator[Section]:
    rows: list[list[Cell | str]] = [
        [
            task,
            _share(one.equal, one.documents),
            _share(one.responses_equal, one.responses),
            "-" if one.first is None else f"document {one.first}",
        ]
        for task, one in result.identity.items()
    ]
    head = ["task", "documents equal", "responses equal", "first that is not"]
    said = "to the last bit" if result.holds else "and not everywhere: see the rows in red"
    text = f"Log-likelihoods and texts of the graft beside its base's, {said}."
    yield Section("Base and graft, document by document", [text], [Table(head, rows)])
    yield Section("Scores", ["Mean and 95 % interval over documents."], [_scores(result)])


def _scores(result: LmEvalResult) -> Table:
    methods = [BASE, *([GUIDED] if GUIDED in result.metrics else [])]
    rows: list[list[Cell | str]] = [
        [f"{task}, {name} (n = {figure.n})", *(_cell(result, m, task, name) for m in methods)]
        for task, figures in result.metrics[BASE].items()
        for name, figure in figures.items()
    ]
    return Table(["", "base, and graft", *methods[1:]], rows)


def _cell(result: LmEvalResult, method: str, task: str, metric: str) -> Cell:
    found: Estimate = result.metrics[method][task][metric]
    return Cell(f"{found.mean:.3f}", f"[{found.low:.3f}, {found.high:.3f}]")


def _share(equal: int, all: int) -> Cell:
    return Cell(f"{equal} of {all}", tone="good" if equal == all else "bad")
