"""`verify`: all levels for one folder and its base, from cheap to strong.

The static level comes first and needs no torch. The others, in levels.py, run models.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from time import monotonic

from otter_cli.checkpoint.folder import MANIFEST, Checkpoint, refuse_gguf
from otter_cli.core import process
from otter_cli.core.errors import OtterError
from otter_cli.families.registry import is_wide_config
from otter_cli.verification.agenda import TimeBudget, VerificationRequest
from otter_cli.verification.report import VerificationReport
from otter_cli.verification.static import StaticResult, check_foreign_checkpoint, check_graft


def verify(request: VerificationRequest, *, interruptible: bool = False) -> VerificationReport:
    """Verifies a folder against its base.

    `interruptible`: Ctrl-C ends the models' runs early, and the report says what was left out.
    Raises OtterError for a folder that is no checkpoint, or cannot be loaded although its files are
    right.
    """
    started = monotonic()
    _refuse_unusable_folders(request)
    report = VerificationReport(request, _static_level(request.folder, request.base))
    if request.static_only:
        return report
    if why := _why_another_model(request):
        # Two models of different shapes cannot be equal, and running them takes minutes.
        report.unrun = why
        return report
    if not (request.folder / MANIFEST).exists():
        report.untraced = "this is no graft, so inserted values cannot be told from the base's"
    try:
        from otter_cli.verification.levels import run_models

        never = nullcontext(lambda: False)
        with process.interruptible() if interruptible else never as interrupted:
            budget = 0.0 if request.only else request.budget
            run_models(report, TimeBudget(interrupted, budget, started))
    except OtterError as error:
        # A folder that is damaged on disk cannot always be loaded. Its findings say why.
        if report.static.holds:
            raise
        report.unrun = error.what
    report.seconds = monotonic() - started
    return report


def _refuse_unusable_folders(request: VerificationRequest) -> None:
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


def _why_another_model(request: VerificationRequest) -> str:
    """Says that the given base has other tensors than the folder, by the headers alone. Empty where
    it has the same."""
    if request.base is None or not (request.folder / "config.json").exists():
        return ""
    try:
        folder, base = Checkpoint.open(request.folder), Checkpoint.open(request.base)
    except OtterError:
        return ""  # the static level has reported what is wrong
    if is_wide_config(folder.config):
        return ""
    shapes = {name: info.shape for name, info in folder.tensors.items()}
    base_shapes = {name: info.shape for name, info in base.tensors.items()}
    if (request.folder / MANIFEST).exists():
        names = shapes.keys() | base_shapes.keys()
    else:
        names = shapes.keys() & base_shapes.keys()
    differing = sorted(name for name in names if shapes.get(name) != base_shapes.get(name))
    if not differing:
        return ""
    return (
        f"{request.base} is another model than {request.folder}: {len(differing)} tensors are "
        f"missing or of another shape, {differing[0]} first"
    )


def _static_level(folder: Path, base: Path | None) -> StaticResult:
    if (folder / MANIFEST).exists():
        return check_graft(folder, base)
    if base is None:
        raise OtterError(
            f"{folder} has no {MANIFEST}, so its base is not known",
            hint="give the folder to compare it with: --base BASE",
        )
    return check_foreign_checkpoint(folder, base)
