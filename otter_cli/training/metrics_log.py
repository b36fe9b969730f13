"""Where the metrics of a run are written: metrics.jsonl always, a tracker on request.

Trackers are TensorBoard, trackio and wandb, each from its own package."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from secrets import token_hex
from types import TracebackType
from typing import Any, Protocol, Self

from otter_cli.core.atomic import write_text
from otter_cli.core.distribution import missing_extra
from otter_cli.core.errors import OtterError
from otter_cli.core.jsonlines import JsonLinesWriter, read_jsonlines
from otter_cli.core.strict_files import MAX_OWN_FILE_BYTES, read_small_text_file

_PROJECT = "otter"
_RUN_ID_FILE = "run-id"


class Tracker(Protocol):
    """Writes named numbers of a step. Steps ascend, except that a resumed run writes the steps
    after its last state again, with the same numbers."""

    def write(self, values: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoardTracker:
    """Writes into FOLDER/tensorboard."""

    def __init__(self, module: Any, folder: Path, step: int) -> None:
        self.writer = module.SummaryWriter(folder / "tensorboard", purge_step=step + 1)

    def write(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class TrackioTracker:
    """Writes into trackio's own folder (TRACKIO_DIR), or to a Space that the environment names."""

    def __init__(self, module: Any, folder: Path, step: int) -> None:
        project = os.environ.get("TRACKIO_PROJECT", _PROJECT)
        self.module = module
        with redirect_stdout(sys.stderr):  # its output is no part of --json
            self.run = module.init(project=project, name=_run_id(folder, step), resume="allow")

    def write(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        with redirect_stdout(sys.stderr):
            self.module.finish()


class WandbTracker:
    """Writes to its server, or with WANDB_MODE=offline into ./wandb (WANDB_DIR): wandb makes links,
    which a checkpoint folder must not hold."""

    def __init__(self, module: Any, folder: Path, step: int) -> None:
        name = _run_id(folder, step)
        try:
            self.run = module.init(
                project=os.environ.get("WANDB_PROJECT", _PROJECT),
                id=name,
                name=name,
                resume="allow",
                settings=module.Settings(console="off", silent=True),
            )
        except module.Error as error:
            raise OtterError(
                f"wandb does not start: {error}",
                hint="wandb login, or WANDB_MODE=offline; metrics.jsonl is written in any case",
            ) from error

    def write(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


# Module, package to install, and class.
TRACKERS: dict[str, tuple[str, str, Callable[[Any, Path, int], Tracker]]] = {
    "tensorboard": ("torch.utils.tensorboard", "tensorboard", TensorBoardTracker),
    "trackio": ("trackio", "trackio", TrackioTracker),
    "wandb": ("wandb", "wandb", WandbTracker),
}


def check_tracker(name: str) -> None:
    """Raises OtterError for an unknown tracker, and where its package is not installed."""
    _tracker_module(name)


def open_tracker(name: str, folder: Path, step: int) -> Tracker:
    """Continues the run in FOLDER after `step`, or starts one at step 0. Raises OtterError."""
    return TRACKERS[name][2](_tracker_module(name), folder, step)


def _tracker_module(name: str) -> Any:
    if name not in TRACKERS:
        raise OtterError(f"--log knows no {name!r}", hint=f"one of {', '.join(TRACKERS)}")
    module, package, _ = TRACKERS[name]
    try:
        return import_module(module)
    except ImportError as error:
        raise missing_extra(
            f"--log {name}", package, "trackers", instead="metrics.jsonl is written in any case"
        ) from error


def _run_id(folder: Path, step: int) -> str:
    """The name that a resumed run shares with the interrupted one."""
    file = folder / _RUN_ID_FILE
    if step == 0 or not file.exists():
        file.write_text(f"{folder.parent.name}-{token_hex(4)}")
    return read_small_text_file(file)


def drop_records_after(path: Path, step: int) -> None:
    """Drops what a killed run logged after the state from which it resumes."""
    if path.exists():
        lines = read_small_text_file(path, limit=MAX_OWN_FILE_BYTES).splitlines(keepends=True)
        kept = [
            line
            for line, record in zip(lines, read_jsonlines(path), strict=False)
            if record["step"] <= step
        ]
        write_text(path, "".join(kept))


METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """Appends records of the steps after `step`. Without a folder (another process writes) it does
    nothing."""

    def __init__(self, folder: Path | None, step: int, *, log: str | None = None) -> None:
        self.lines: JsonLinesWriter | None = None
        self.tracker: Tracker | None = None
        if folder is None:
            return
        if log is not None:
            self.tracker = open_tracker(log, folder, step)
        drop_records_after(folder / METRICS_FILE, step)
        self.lines = JsonLinesWriter(folder / METRICS_FILE)

    def append(self, record: dict[str, Any]) -> None:
        if self.lines is not None:
            self.lines.append(record)
        if self.tracker is not None:
            self.tracker.write(dict(_scalars(record)), record["step"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for opened in (self.lines, self.tracker):
            if opened is not None:
                opened.close()


def _scalars(record: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Names such as `loss/reward`, `rate` and `evaluation/reward/accuracy` (an interval's mean)."""
    scalars: list[tuple[str, float]] = []
    for key, value in record.items():
        if isinstance(value, Mapping):
            value = {"": value["mean"]} if "mean" in value else value
            scalars += [(f"{key}/{n}".rstrip("/"), v) for n, v in _scalars(value)]
        elif key != "step":
            scalars.append((key, float(value)))
    return scalars
