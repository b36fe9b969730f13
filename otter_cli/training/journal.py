"""Where the records of a run go: metrics.jsonl always, and a sink on request."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from otter_cli.core.jsonlines import JsonLines
from otter_cli.training.resume import forget_after
from otter_cli.training.sinks import Sink, open_sink

METRICS = "metrics.jsonl"


class Journal:
    """Records of the steps after `step`. Without a folder it keeps none: another process does."""

    def __init__(self, folder: Path | None, step: int, *, log: str | None = None) -> None:
        self.lines: JsonLines | None = None
        self.sink: Sink | None = None
        if folder is None:
            return
        if log is not None:
            self.sink = open_sink(log, folder, step)
        forget_after(folder / METRICS, step)
        self.lines = JsonLines(folder / METRICS)

    def append(self, record: dict[str, Any]) -> None:
        if self.lines is not None:
            self.lines.append(record)
        if self.sink is not None:
            self.sink.write(dict(_scalars(record)), record["step"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for opened in (self.lines, self.sink):
            if opened is not None:
                opened.close()


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
