"""result.json: the typed result of a run. Every figure is {mean, low, high, n}.

`ResultFile` is the base class of every benchmark's result. It is written atomically and read
strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from otter_cli.benchmarks.metrics.estimates import Estimate
from otter_cli.benchmarks.records import RunSettings
from otter_cli.core.atomic import write_json
from otter_cli.core.errors import OtterError
from otter_cli.core.strict_files import MAX_OWN_FILE_BYTES, read_small_file
from otter_cli.scorers.scorer import ScorerRecord

RESULT_FILE = "result.json"
EXAMPLES_FILE = "examples.json"
SCHEMA_VERSION = 1

BenchmarkName = Literal["preference", "detox", "detection", "speedup"]


class ResultPart(BaseModel):
    """A part of a result. Unknown keys and figures that are not finite are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class ResultFile(ResultPart):
    """A result.json. Every kind has `benchmark`, which names the kind."""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises OtterError for a folder without a result, and for a damaged or later one."""
        path = folder / RESULT_FILE
        if not path.exists():
            raise OtterError(
                f"{folder} holds no {RESULT_FILE}: no finished run",
                hint="give the same `otter bench` command again: it resumes",
            )
        text = read_small_file(path, limit=MAX_OWN_FILE_BYTES)
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise OtterError(
                f"{path} cannot be read: {where}: {first['msg']}",
                hint="give the same `otter bench` command again: samples are kept",
            ) from error

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / RESULT_FILE, self.model_dump(mode="json"))


class ExampleText(ResultPart):
    """A text of the run for its report: tokens as text, with the value of a signal at each.
    `values` are None for a method that reads no signal."""

    label: str
    signal: str
    prompt: str
    tokens: list[str]
    values: list[float | None]


class ExampleTexts(ResultPart):
    """examples.json, beside result.json."""

    texts: list[ExampleText]

    @classmethod
    def read(cls, folder: Path) -> list[ExampleText]:
        """Nothing for a run without examples, such as one of an earlier version. Raises OtterError
        for a damaged file."""
        path = folder / EXAMPLES_FILE
        if not path.exists():
            return []
        try:
            return cls.model_validate_json(read_small_file(path, limit=MAX_OWN_FILE_BYTES)).texts
        except ValidationError as error:
            raise OtterError(
                f"{path} cannot be read: {error.errors()[0]['msg']}",
                hint="remove it: the report then shows no texts",
            ) from error

    def write(self, folder: Path) -> None:
        write_json(folder / EXAMPLES_FILE, self.model_dump(mode="json"))


class ParetoFront(ResultPart):
    """A family of methods at several strengths. `area`: the mean gain in gold reward over plain
    decoding, over KL to the base from plain's up to `up_to`, which every front of the run reaches.
    """

    methods: list[str]
    up_to: float
    area: Estimate


class MethodMemory(ResultPart):
    """Counted bytes at the peak: parameters, and the KV caches of one call."""

    weights: int
    caches: int

    @property
    def total(self) -> int:
        return self.weights + self.caches


class Divergence(ResultPart):
    """The first token in which a greedy output differs from plain greedy decoding. `gap`: the
    distance of the base's logits of the two tokens there."""

    prompt: str
    position: int
    gap: float


class MethodResult(ResultPart):
    """The figures of one method. `against_plain`: differences paired by prompt, empty for plain
    itself. `by_category`: the main figures by category of prompts, where there are several."""

    label: str
    metrics: dict[str, Estimate]
    against_plain: dict[str, Estimate] = Field(default_factory=dict)
    by_category: dict[str, dict[str, Estimate]] = Field(default_factory=dict)
    memory: MethodMemory
    divergences: list[Divergence] = Field(default_factory=list)


class BenchmarkResult(ResultFile):
    """A run's result. It can be recomputed from samples.jsonl, timings.jsonl and the scorers."""

    schema_version: int = SCHEMA_VERSION
    benchmark: BenchmarkName
    key: str
    settings: RunSettings
    scorers: dict[str, ScorerRecord] = Field(default_factory=dict)
    methods: dict[str, MethodResult]
    fronts: dict[str, ParetoFront] = Field(default_factory=dict)
    findings: list[str] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)
    sessions: list[dict[str, Any]] = Field(default_factory=list)
    process_memory: int = Field(description="the process's resident peak in bytes: information")
