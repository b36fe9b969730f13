"""The proof, from cheap to strong: static, structural, grid with control, poison, locality; and a
bisection where something differs."""

from __future__ import annotations

import gc
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.checkpoint.gguf.hint import refuse_gguf
from otter_cli.core.errors import OtterError
from otter_cli.insertion import MANIFEST
from otter_cli.verification.cases import Case
from otter_cli.verification.findings import Static
from otter_cli.verification.heap import return_freed_blocks
from otter_cli.verification.other import check_other
from otter_cli.verification.report import Report
from otter_cli.verification.request import Request
from otter_cli.verification.static import check_graft
from otter_cli.verification.wide import is_wide

if TYPE_CHECKING:
    from otter_cli.verification.pair import Pair


def verify(request: Request) -> Report:
    """Everything that can be said of a folder beside its base.

    Raises OtterError for what is no checkpoint, or cannot be loaded though its files are right.
    """
    folder = request.folder
    _refuse_absent(request)
    report = Report(request, _static(folder, request.base))
    if request.static_only:
        return report
    if why := _another_model(request):
        # No grid can find them equal, and running two models takes minutes.
        report.unrun = why
        return report
    if not (folder / MANIFEST).exists():
        report.untraced = "no graft with tensors of its own, so nothing tells inserted values apart"
    try:
        _run_models(report)
    except OtterError as error:
        # A folder that is refuted on disk already may well be beyond loading.
        if report.static.holds:
            raise
        report.unrun = error.what
    return report


def _refuse_absent(request: Request) -> None:
    for what, path in (("folder", request.folder), ("base", request.base)):
        if path is None:
            continue
        if not path.exists():
            raise OtterError(f"{path} does not exist", hint=f"check the path of the {what}")
        refuse_gguf(path)
        if not path.is_dir():
            raise OtterError(f"{path} is not a folder", hint="give a folder with config.json")
    base = request.base
    if base is not None and not (base / "config.json").exists():
        raise OtterError(
            f"{base} is not a checkpoint: it has no config.json", hint="give the folder of the base"
        )


def _another_model(request: Request) -> str:
    """Why the base given is of another shape than the folder's own, known from headers alone; empty
    where it is not."""
    if request.base is None or not (request.folder / "config.json").exists():
        return ""
    try:
        ours, theirs = Checkpoint.open(request.folder), Checkpoint.open(request.base)
    except OtterError:
        return ""  # the static level has said what is wrong
    if is_wide(ours.config):
        return ""
    shapes = {n: info.shape for n, info in ours.tensors.items()}
    other = {n: info.shape for n, info in theirs.tensors.items()}
    names = shapes.keys() & other.keys()
    if (request.folder / MANIFEST).exists():
        names = shapes.keys() | other.keys()
    differing = sorted(n for n in names if shapes.get(n) != other.get(n))
    if not differing:
        return ""
    return (
        f"{request.base} is another model than {request.folder}: {len(differing)} tensors are "
        f"missing or of another shape, {differing[0]} first"
    )


def _static(folder: Path, base: Path | None) -> Static:
    refuse_gguf(folder)
    if (folder / MANIFEST).exists():
        return check_graft(folder, base)
    if base is None:
        raise OtterError(
            f"{folder} has no {MANIFEST}, so its base is not known",
            hint="say what to compare it with: --base BASE",
        )
    return check_other(folder, base)


def _run_models(report: Report) -> None:
    from otter_cli.verification.pair import open_pair, positions

    return_freed_blocks()
    request = report.request
    window = positions(request.against)
    cases = request.grid.cases(window)
    shared = report.static.holds and not request.independent
    for (device, dtype), group in groupby(cases, lambda case: (case.device, case.dtype)):
        # Modules refer to one another, and the last dtype's would lie beside this one's: neither
        # kept in a name nor left to a collector that counts objects and not bytes.
        gc.collect()
        _run_levels(
            report,
            open_pair(request, dtype=dtype, device=device, shared=shared),
            list(group),
            window,
        )


def _run_levels(report: Report, pair: Pair, cases: list[Case], window: int) -> None:
    """All levels that need models, on one loaded pair."""
    from otter_cli.verification.bisect import bisect
    from otter_cli.verification.compare import CaseResult, Skipped, compare, poison_cases
    from otter_cli.verification.locality import check_locality
    from otter_cli.verification.poison import VALUES, poison_each
    from otter_cli.verification.structure import trace_paths, traced_cases

    full = report.request.grid.name == "full"
    compared = list(compare(pair, cases))
    results = [result for result in compared if isinstance(result, CaseResult)]
    report.skipped += [result for result in compared if isinstance(result, Skipped)]
    ran = [result.case for result in results if not result.failure]
    if pair.otter is not None and ran:
        report.paths += trace_paths(pair, pair.otter, traced_cases(ran, window))
        # Under eager attention if there is any: fused kernels may take NaN queries for zeros.
        probe = replace(ran[0], path="prefill", length=6, batch=2, padding="left", steps=0)
        if not report.each or full:
            report.each.append(poison_each(pair, pair.otter, probe, VALUES if full else VALUES[:1]))
        report.locality += check_locality(pair.otter, replace(probe, length=12, batch=1))
    moved = [result.case for result in results if result.control and not result.equal]
    moved = [case for case in moved if case in ran]
    if moved and report.parting is None:
        report.parting = bisect(pair, min(moved, key=lambda case: case.tokens))
    if pair.otter is not None:
        results = poison_cases(pair, pair.otter, results, every_value=full)
    report.results += results
