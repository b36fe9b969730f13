"""result.json: the typed result of a run. Every figure is {mean, low, high, n}.

ResultFile is the base class for every benchmark's result: written atomically, read strictly."""

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


class ResultPart(BaseModel):
    """A part of a result: nothing unknown in it, and no figure that is not finite."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class ResultFile(ResultPart):
    """The whole of it; `benchmark` is its first line in every kind."""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises OtterError where there is none, or it is damaged, or of a later version."""
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


class ParetoFront(BaseModel):
    """`area`: the mean gain in gold reward over plain's, over KL from plain's up to `up_to`, which
    all fronts of a run reach; of points, the best that costs no more."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    methods: list[str]
    up_to: float
    area: Estimate


SCHEMA_VERSION = 1

BenchmarkName = Literal["preference", "detox", "detection", "speedup"]


class MethodMemory(ResultPart):
    """What a method holds at its peak, counted, in bytes: weights, and KV caches of one call."""

    weights: int
    caches: int

    @property
    def total(self) -> int:
        return self.weights + self.caches


class Divergence(ResultPart):
    """Where a greedy output left plain greedy decoding's: `gap` is how far apart the base's logits
    of the two tokens are there."""

    prompt: str
    position: int
    gap: float


class MethodResult(ResultPart):
    """One method. `difference_sentence`: differences paired by prompt, absent for plain itself;
    `by_category`: the main figures for prompts of each category, where there are several."""

    label: str
    metrics: dict[str, Estimate]
    against_plain: dict[str, Estimate] = Field(default_factory=dict)
    by_category: dict[str, dict[str, Estimate]] = Field(default_factory=dict)
    memory: MethodMemory
    divergences: list[Divergence] = Field(default_factory=list)


class BenchmarkResult(ResultFile):
    """A run's outcome; recomputed from samples.jsonl, timings.jsonl and the scorers alone."""

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
