"""`verify`: all levels, from cheap to strong, for one folder and its base.

Static, structural, the grid with its control, poison and locality; and a bisection where something
differs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from time import monotonic

from otter_cli.checkpoint.folder import MANIFEST, Checkpoint
from otter_cli.checkpoint.gguf.header import refuse_gguf
from otter_cli.core.errors import OtterError
from otter_cli.verification.agenda import TimeBudget, VerificationRequest
from otter_cli.verification.foreign_checkpoint import check_foreign_checkpoint, is_wide_export
from otter_cli.verification.report import VerificationReport
from otter_cli.verification.static import StaticResult, check_graft


def verify(request: VerificationRequest, *, interruptible: bool = False) -> VerificationReport:
    """Everything that can be said of a folder beside its base. `interruptible`: Ctrl-C ends the
    models' runs early, and the report says what was left out.

    Raises OtterError for what is no checkpoint, or cannot be loaded though its files are right.
    """
    started = monotonic()
    folder = request.folder
    _refuse_absent(request)
    report = VerificationReport(request, _static_level(folder, request.base))
    if request.static_only:
        return report
    if why := _another_model(request):
        # No grid can find them equal, and running two models takes minutes.
        report.unrun = why
        return report
    if not (folder / MANIFEST).exists():
        report.untraced = "no graft with tensors of its own, so nothing tells inserted values apart"
    try:
        from otter_cli.verification.levels import run_models

        with _interruption(interruptible) as interrupted:
            budget = 0.0 if request.only else request.budget
            run_models(report, TimeBudget(interrupted, budget, started))
    except OtterError as error:
        # A folder that is refuted on disk already may well be beyond loading.
        if report.static.holds:
            raise
        report.unrun = error.what
    report.seconds = monotonic() - started
    return report


def _interruption(wanted: bool) -> AbstractContextManager[Callable[[], bool]]:
    if not wanted:
        return nullcontext(lambda: False)
    from otter_cli.core.process import interruptible

    return interruptible()


def _refuse_absent(request: VerificationRequest) -> None:
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


def _another_model(request: VerificationRequest) -> str:
    """Why the base given is of another shape than the folder's own, known from headers alone; empty
    where it is not."""
    if request.base is None or not (request.folder / "config.json").exists():
        return ""
    try:
        ours, theirs = Checkpoint.open(request.folder), Checkpoint.open(request.base)
    except OtterError:
        return ""  # the static level has said what is wrong
    if is_wide_export(ours.config):
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


def _static_level(folder: Path, base: Path | None) -> StaticResult:
    refuse_gguf(folder)
    if (folder / MANIFEST).exists():
        return check_graft(folder, base)
    if base is None:
        raise OtterError(
            f"{folder} has no {MANIFEST}, so its base is not known",
            hint="say what to compare it with: --base BASE",
        )
    return check_foreign_checkpoint(folder, base)
