"""A run's folder: settings, samples as they are made, times, scores, result. Rerunning resumes.

run.yaml          the settings, whose digest is the run's key
prompts.jsonl     the prompts as every method gets them
samples.jsonl     one line a generation, flushed as made, no times in it
timings.jsonl     their times
scores.jsonl      what the scorers said, written whole after the last sample
environment.json  a session per process that worked on it: command, versions, hardware
result.json, report.html, report.md
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import yaml

from otter_cli.benchmarks.prompts import BenchPrompt
from otter_cli.benchmarks.records import Sample, Scores, Timing
from otter_cli.benchmarks.result import Result
from otter_cli.benchmarks.run_files import RunFiles, read_settings
from otter_cli.benchmarks.settings import RunSettings
from otter_cli.core.atomic import write_json, write_text
from otter_cli.core.errors import OtterError
from otter_cli.core.jsonlines import JsonLines
from otter_cli.core.lock import writer_lock


class RunFolder(RunFiles):
    """The folder of one run, open for one process at a time: see `opened`."""

    def __init__(self, path: Path, samples: JsonLines, timings: JsonLines) -> None:
        super().__init__(path)
        self._samples, self._timings = samples, timings

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

    def add_session(self, session: Mapping[str, Any]) -> int:
        """Records this process in environment.json; returns the session's number."""
        sessions = [*self.sessions(), dict(session)]
        write_json(self.path / "environment.json", {"sessions": sessions})
        return len(sessions) - 1

    def write_prompts(self, prompts: Sequence[BenchPrompt]) -> None:
        _write_lines(self.path / "prompts.jsonl", map(asdict, prompts))

    def write_scores(self, scores: Scores) -> None:
        lines = ({**key._asdict(), "scores": found} for key, found in scores.items())
        _write_lines(self.path / "scores.jsonl", lines)

    def write_result(self, result: Result) -> None:
        result.write(self.path)


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


def _write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
