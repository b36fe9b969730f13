"""A run's folder: settings, samples as they are made, times, scores, result. Rerunning resumes.

run.yaml          the settings, whose digest is the run's key
samples.jsonl     one line a generation, flushed as made, no times in it
timings.jsonl     their times
scores.jsonl      what the scorers said, written whole after the last sample
environment.json  a session per process that worked on it: command, versions, hardware
result.json, report.html, report.md
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from otter_cli.benchmarks.records import Sample, SampleKey, Timing
from otter_cli.benchmarks.result import RESULT, Result
from otter_cli.benchmarks.settings import RunSettings
from otter_cli.core.atomic import write_json, write_text
from otter_cli.core.errors import OtterError
from otter_cli.core.jsonlines import JsonLines, numbered_jsonlines
from otter_cli.core.lock import writer_lock

Line = TypeVar("Line", bound=BaseModel)


class RunFolder:
    """The folder of one run, open for one process at a time: see `opened`."""

    def __init__(self, path: Path, samples: JsonLines, timings: JsonLines) -> None:
        self.path, self._samples, self._timings = path, samples, timings

    @classmethod
    @contextmanager
    def opened(cls, path: Path, settings: RunSettings) -> Iterator[Self]:
        """Starts the run in `path`, or goes on with it. Raises OtterError where another run is
        there, or another process at work."""
        path.mkdir(parents=True, exist_ok=True)
        with writer_lock(path.absolute()):
            _claim(path, settings)
            with (
                JsonLines(path / "samples.jsonl") as samples,
                JsonLines(path / "timings.jsonl") as timings,
            ):
                yield cls(path, samples, timings)

    def add(self, sample: Sample, timing: Timing) -> None:
        """Stores one generation. A sample on disk has its time on disk: that goes first."""
        self.add_timing(timing)
        self._samples.append(sample.model_dump())

    def add_timing(self, timing: Timing) -> None:
        self._timings.append(timing.model_dump())

    def samples(self) -> dict[SampleKey, Sample]:
        return {sample.key: sample for sample in _lines(self.path / "samples.jsonl", Sample)}

    def timings(self) -> dict[SampleKey, Timing]:
        """Of a generation that was made again after a kill, the last time counts."""
        return {timing.key: timing for timing in _lines(self.path / "timings.jsonl", Timing)}

    def add_session(self, session: Mapping[str, Any]) -> int:
        """Records this process in environment.json; returns the session's number."""
        sessions = [*self.sessions(), dict(session)]
        write_json(self.path / "environment.json", {"sessions": sessions})
        return len(sessions) - 1

    def sessions(self) -> list[dict[str, Any]]:
        path = self.path / "environment.json"
        if not path.exists():
            return []
        sessions: list[dict[str, Any]] = json.loads(path.read_bytes())["sessions"]
        return sessions

    def write_result(self, result: Result) -> None:
        write_json(self.path / RESULT, result.model_dump(mode="json"))


def _claim(path: Path, settings: RunSettings) -> None:
    """Writes run.yaml, or makes sure that the one there says the same."""
    file = path / "run.yaml"
    if not file.exists():
        if any(path.iterdir()):
            raise OtterError(
                f"{path} holds files, and no run.yaml among them: it is no run's folder",
                hint="choose another --out",
            )
        text = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)
        write_text(file, f"# key: {settings.key}\n{text}")
        return
    changed = read_settings(file).differences(settings)
    if changed:
        raise OtterError(
            f"{path} holds a run with other settings: {', '.join(changed[:3])}"
            f"{' and more' if changed[3:] else ''}",
            hint="choose another --out: samples of unlike settings are never mixed",
        )


def read_settings(path: Path) -> RunSettings:
    """The settings in a run.yaml; OtterError where it is no such file."""
    try:
        return RunSettings.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (ValidationError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise OtterError(
            f"{path} cannot be read as a run's settings", hint="choose another output folder"
        ) from error


def _lines(path: Path, kind: type[Line]) -> Iterator[Line]:
    for number, record in numbered_jsonlines(path):
        try:
            yield kind.model_validate(record)
        except ValidationError as error:
            first = error.errors()[0]
            raise OtterError(
                f"{path}, line {number}: {'.'.join(map(str, first['loc']))}: {first['msg']}",
                hint="the line was changed by hand or written by another version: remove it, "
                "and the same command makes that sample again",
            ) from error
