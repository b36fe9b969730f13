"""Where the records of a run go: metrics.jsonl always, TensorBoard on request."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from otter_cli.core.errors import OtterError
from otter_cli.core.jsonlines import JsonLines
from otter_cli.training.resume import forget_after

METRICS = "metrics.jsonl"


class Journal:
    """Records of the steps after `step`. Without a folder it keeps none: another process does."""

    def __init__(self, folder: Path | None, step: int, *, tensorboard: bool = False) -> None:
        self.lines: JsonLines | None = None
        self.board: Any = None
        if folder is None:
            return
        if tensorboard:
            self.board = _summary_writer()(folder / "tensorboard", purge_step=step + 1)
        forget_after(folder / METRICS, step)
        self.lines = JsonLines(folder / METRICS)

    def append(self, record: dict[str, Any]) -> None:
        if self.lines is not None:
            self.lines.append(record)
        if self.board is not None:
            for name, value in _scalars(record):
                self.board.add_scalar(name, value, record["step"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for sink in (self.lines, self.board):
            if sink is not None:
                sink.close()


def check_tensorboard() -> None:
    """Raises OtterError where it is not installed."""
    _summary_writer()


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise OtterError(
            "--tensorboard needs the package tensorboard, which is not installed",
            hint="pip install tensorboard; metrics.jsonl is written in any case",
        ) from error
    return SummaryWriter


def _scalars(record: Mapping[str, Any]) -> list[tuple[str, float]]:
    """`loss/reward`, `rate`, `evaluation/reward/accuracy`: of an interval its middle."""
    found: list[tuple[str, float]] = []
    for key, value in record.items():
        if isinstance(value, Mapping):
            value = {"": value["mean"]} if "mean" in value else value
            found += [(f"{key}/{n}".rstrip("/"), v) for n, v in _scalars(value)]
        elif key != "step":
            found.append((key, float(value)))
    return found
