"""A run's files as they are read: by the run itself, and by whoever looks at it afterwards."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from otter_cli.benchmarks.prompts import BenchPrompt
from otter_cli.benchmarks.records import Sample, SampleKey, Scores, Timing
from otter_cli.benchmarks.settings import RunSettings
from otter_cli.checkpoint.strict_json import read_own_object
from otter_cli.core.errors import OtterError
from otter_cli.core.jsonlines import numbered_jsonlines
from otter_cli.core.strict_yaml import read_yaml

Line = TypeVar("Line", bound=BaseModel)


class RunFiles:
    """What is in the folder of a run; `run_folder` says which file is what."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def samples(self) -> dict[SampleKey, Sample]:
        return {sample.key: sample for sample in _lines(self.path / "samples.jsonl", Sample)}

    def timings(self) -> dict[SampleKey, Timing]:
        """Of a generation that was made again after a kill, the last time counts."""
        return {timing.key: timing for timing in _lines(self.path / "timings.jsonl", Timing)}

    def sessions(self) -> list[dict[str, Any]]:
        path = self.path / "environment.json"
        if not path.exists():
            return []
        sessions: list[dict[str, Any]] = read_own_object(path)["sessions"]
        return sessions

    def prompts(self) -> list[BenchPrompt]:
        lines = numbered_jsonlines(self.path / "prompts.jsonl")
        return [
            BenchPrompt(
                **line
                | {"tokens": tuple(line["tokens"]), "messages": tuple(line.get("messages", ()))}
            )
            for _, line in lines
        ]

    def scores(self) -> Scores:
        lines = numbered_jsonlines(self.path / "scores.jsonl")
        return {
            SampleKey(**{k: line[k] for k in SampleKey._fields}): line["scores"]
            for _, line in lines
        }


def read_settings(path: Path) -> RunSettings:
    """The settings in a run.yaml; OtterError where it is no such file."""
    try:
        return RunSettings.model_validate(read_yaml(path, hint="choose another output folder"))
    except ValidationError as error:
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
