"""A run's folder: settings, samples as they are made, times, scores, result. Rerunning resumes.

run.yaml          the settings, whose digest is the run's key
prompts.jsonl     the prompts as every method gets them
samples.jsonl     one line per generation, flushed when made, without times
timings.jsonl     their times
scores.jsonl      the scorers' values, written whole after the last sample
environment.json  one session per process that worked on it: command, versions, hardware
result.json, report.html, report.md"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from otter_cli.benchmarks.prompts import BenchPrompt
from otter_cli.benchmarks.records import (
    MethodRows,
    RunData,
    RunSettings,
    Sample,
    SampleKey,
    ScoredSample,
    Timing,
)
from otter_cli.core.atomic import write_json, write_text, writer_lock
from otter_cli.core.errors import OtterError
from otter_cli.core.jsonlines import JsonLinesWriter, numbered_jsonlines
from otter_cli.core.strict_files import read_own_json_object, read_yaml
from otter_cli.scorers.scorer import ScorerRecord

LineModel = TypeVar("LineModel", bound=BaseModel)


class RunFiles:
    """The files in a run's folder, read strictly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def samples(self) -> dict[SampleKey, Sample]:
        return {sample.key: sample for sample in _read_lines(self.path / "samples.jsonl", Sample)}

    def timings(self) -> dict[SampleKey, Timing]:
        """If a generation was repeated after a kill, its last time counts."""
        return {timing.key: timing for timing in _read_lines(self.path / "timings.jsonl", Timing)}

    def scores(self) -> dict[SampleKey, dict[str, float]]:
        lines = numbered_jsonlines(self.path / "scores.jsonl")
        return {
            SampleKey(**{k: line[k] for k in SampleKey._fields}): line["scores"]
            for _, line in lines
        }

    def sessions(self) -> list[dict[str, Any]]:
        path = self.path / "environment.json"
        if not path.exists():
            return []
        sessions: list[dict[str, Any]] = read_own_json_object(path)["sessions"]
        return sessions

    def prompts(self) -> list[BenchPrompt]:
        lines = (line for _, line in numbered_jsonlines(self.path / "prompts.jsonl"))
        return [
            BenchPrompt(
                **line
                | {"tokens": tuple(line["tokens"]), "messages": tuple(line.get("messages", ()))}
            )
            for line in lines
        ]

    def load(
        self,
        settings: RunSettings,
        parameter_bytes: Mapping[str, int],
        scorers: Mapping[str, ScorerRecord],
        *,
        scored: bool = True,
    ) -> RunData:
        """The rows of every method, with their scores if the run is `scored` already. Raises
        OtterError where a line is missing: no figure is computed from a part of the samples."""
        prompts = self.prompts()
        if len(prompts) != settings.prompts.count:
            raise OtterError(
                f"{self.path / 'prompts.jsonl'} holds {len(prompts)} prompts, "
                f"and the run had {settings.prompts.count}",
                hint="give the command of the run again: it writes them",
            )
        samples, timings = self.samples(), self.timings()
        scores = self.scores() if scored else {key: {} for key in samples}

        def row(key: SampleKey) -> ScoredSample:
            for name, lines in (("samples", samples), ("timings", timings), ("scores", scores)):
                if key not in lines:
                    raise OtterError(
                        f"{self.path / name}.jsonl: {key} is missing",
                        hint="give the command of the run again: it makes what is missing",
                    )
            return ScoredSample(samples[key], timings[key], scores[key])

        repeats = range(settings.samples_per_prompt)
        return RunData(
            prompts=tuple(prompts),
            rows={
                method: MethodRows(
                    [[row(SampleKey(method, p.name, i)) for i in repeats] for p in prompts]
                )
                for method in settings.methods
            },
            parameter_bytes=parameter_bytes,
            methods=settings.methods,
            scorers=scorers,
            sampling=settings.sampling,
        )


def read_settings(path: Path) -> RunSettings:
    """The settings in a run.yaml. Raises OtterError for another file."""
    try:
        return RunSettings.model_validate(read_yaml(path, hint="choose another output folder"))
    except ValidationError as error:
        raise OtterError(
            f"{path} cannot be read as a run's settings", hint="choose another output folder"
        ) from error


def _read_lines(path: Path, kind: type[LineModel]) -> Iterator[LineModel]:
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


class RunFolder(RunFiles):
    """The folder of one run, open for one process at a time: see `opened`."""

    def __init__(self, path: Path, samples: JsonLinesWriter, timings: JsonLinesWriter) -> None:
        super().__init__(path)
        self._samples, self._timings = samples, timings

    @classmethod
    @contextmanager
    def opened(cls, path: Path, settings: RunSettings) -> Iterator[Self]:
        """Start the run in `path`, or resume it. Raises OtterError where the folder holds another
        run, or another process works on it."""
        path.mkdir(parents=True, exist_ok=True)
        with writer_lock(path.absolute()):
            _claim_folder(path, settings)
            with (
                JsonLinesWriter(path / "samples.jsonl") as samples,
                JsonLinesWriter(path / "timings.jsonl") as timings,
            ):
                yield cls(path, samples, timings)

    def add(self, sample: Sample, timing: Timing) -> None:
        """Store one generation. The timing goes first, so a stored sample has its time."""
        self.add_timing(timing)
        self._samples.append(sample.model_dump())

    def add_timing(self, timing: Timing) -> None:
        self._timings.append(timing.model_dump())

    def add_session(self, session: Mapping[str, Any]) -> int:
        """Record this process in environment.json; returns the session's number."""
        sessions = [*self.sessions(), dict(session)]
        write_json(self.path / "environment.json", {"sessions": sessions})
        return len(sessions) - 1

    def write_prompts(self, prompts: Sequence[BenchPrompt]) -> None:
        _write_lines(self.path / "prompts.jsonl", map(asdict, prompts))

    def write_scores(self, data: RunData) -> None:
        groups = (group for rows in data.rows.values() for group in rows.groups)
        scored = (row for group in groups for row in group)
        lines = ({**row.sample.key._asdict(), "scores": row.scores} for row in scored)
        _write_lines(self.path / "scores.jsonl", lines)


def _claim_folder(path: Path, settings: RunSettings) -> None:
    """Write run.yaml, or check that the run.yaml there has the same settings."""
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
