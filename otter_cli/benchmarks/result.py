"""result.json: the typed outcome of a run. Every figure is {mean, low, high, n}."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from otter_cli.benchmarks.estimates import Estimate
from otter_cli.benchmarks.front import Front
from otter_cli.benchmarks.scorers import ScorerRecord
from otter_cli.benchmarks.settings import RunSettings
from otter_cli.core.errors import OtterError

SCHEMA_VERSION = 1
RESULT = "result.json"

BenchmarkName = Literal["preference", "detox", "detection", "speedup"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Memory(_Part):
    """What a method holds at its peak, counted, in bytes: weights, and KV caches of one call."""

    weights: int
    caches: int

    @property
    def total(self) -> int:
        return self.weights + self.caches


class Divergence(_Part):
    """Where a greedy output left plain greedy decoding's: `gap` is how far apart the base's logits
    of the two tokens are there."""

    prompt: str
    position: int
    gap: float


class MethodResult(_Part):
    """One method. `against_plain`: differences paired by prompt, absent for plain itself."""

    label: str
    metrics: dict[str, Estimate]
    against_plain: dict[str, Estimate] = Field(default_factory=dict)
    memory: Memory
    divergences: list[Divergence] = Field(default_factory=list)


class Result(_Part):
    """A run's outcome; recomputed from samples.jsonl, timings.jsonl and the scorers alone."""

    schema_version: int = SCHEMA_VERSION
    benchmark: BenchmarkName
    key: str
    settings: RunSettings
    scorers: dict[str, ScorerRecord] = Field(default_factory=dict)
    methods: dict[str, MethodResult]
    fronts: dict[str, Front] = Field(default_factory=dict)
    findings: list[str] = Field(default_factory=list)
    sessions: list[dict[str, Any]] = Field(default_factory=list)
    process_memory: int = Field(description="the process's resident peak in bytes: information")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises OtterError where there is none, or it is damaged, or of a later version."""
        path = folder / RESULT
        try:
            text = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise OtterError(
                f"{folder} holds no {RESULT}: no finished run",
                hint="give the same `otter bench` command again: it resumes",
            ) from error
        try:
            result = cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise OtterError(
                f"{path} cannot be read: {where}: {first['msg']}",
                hint="give the same `otter bench` command again: samples are kept",
            ) from error
        return result
