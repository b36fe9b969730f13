"""result.json: the typed outcome of a run. Every figure is {mean, low, high, n}."""

from typing import Any, Literal

from pydantic import Field

from otter_cli.benchmarks.estimates import Estimate
from otter_cli.benchmarks.front import Front
from otter_cli.benchmarks.result_file import Part, ResultFile
from otter_cli.benchmarks.scorers import ScorerRecord
from otter_cli.benchmarks.settings import RunSettings

SCHEMA_VERSION = 1

BenchmarkName = Literal["preference", "detox", "detection", "speedup"]


class Memory(Part):
    """What a method holds at its peak, counted, in bytes: weights, and KV caches of one call."""

    weights: int
    caches: int

    @property
    def total(self) -> int:
        return self.weights + self.caches


class Divergence(Part):
    """Where a greedy output left plain greedy decoding's: `gap` is how far apart the base's logits
    of the two tokens are there."""

    prompt: str
    position: int
    gap: float


class MethodResult(Part):
    """One method. `against_plain`: differences paired by prompt, absent for plain itself;
    `by_category`: the main figures for prompts of each category, where there are several."""

    label: str
    metrics: dict[str, Estimate]
    against_plain: dict[str, Estimate] = Field(default_factory=dict)
    by_category: dict[str, dict[str, Estimate]] = Field(default_factory=dict)
    memory: Memory
    divergences: list[Divergence] = Field(default_factory=list)


class Result(ResultFile):
    """A run's outcome; recomputed from samples.jsonl, timings.jsonl and the scorers alone."""

    schema_version: int = SCHEMA_VERSION
    benchmark: BenchmarkName
    key: str
    settings: RunSettings
    scorers: dict[str, ScorerRecord] = Field(default_factory=dict)
    methods: dict[str, MethodResult]
    fronts: dict[str, Front] = Field(default_factory=dict)
    findings: list[str] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)
    sessions: list[dict[str, Any]] = Field(default_factory=list)
    process_memory: int = Field(description="the process's resident peak in bytes: information")
