"""The typed records of a run: its settings (run.yaml), samples, timings and scores.

The digest of the settings is the run's key. MethodRows groups samples by prompt, as the metrics
need them; RunData holds the rows of every method, of a run that just ended or of a stored one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any, NamedTuple, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from otter_cli.benchmarks.prompts import BenchPrompt, PromptsRecord
from otter_cli.core.digests import sha256_json
from otter_cli.core.strict_config import StrictRecord
from otter_cli.scorers.load import ModelRecord
from otter_cli.scorers.scorer import ScorerRecord

PLAIN = "plain"
# `insertion@0.5` is the method `insertion` at that strength.
STRENGTH_MARK = "@"


def method_family(method: str) -> str:
    """The method's name without its strength."""
    return method.partition(STRENGTH_MARK)[0]


INSERTION, TASK_HEAD, ARGS, PROMPT_LOOKUP = "insertion", "task-head", "args", "prompt-lookup"


SCHEMA_VERSION = 1

_UNKEYED_FIELDS = ("name", "file", "label")


class MethodRecord(StrictRecord):
    """One way of generating: the models it uses and how it is steered or drafted."""

    label: str
    models: list[ModelRecord]
    steering: dict[str, Any] = Field(default_factory=dict)


class RunSettings(StrictRecord):
    """Names of files and folders are recorded and left out of the key: digests stand for them."""

    schema_version: int = SCHEMA_VERSION
    benchmark: str
    prompts: PromptsRecord
    methods: dict[str, MethodRecord]
    sampling: dict[str, Any]
    samples_per_prompt: int
    batch: int
    # Prompts that share a call.
    together: int = 1
    seed: int

    @property
    def key(self) -> str:
        """Equal for equal settings, wherever the files lie."""
        return sha256_json(self._deciding())

    def _deciding(self) -> dict[str, Any]:
        # Runs from before prompts could share a call keep their keys.
        unsaid = {"together"} if self.together == 1 else set()
        decides: dict[str, Any] = _without_names(self.model_dump(mode="json", exclude=unsaid))
        # The digest says which prompts they are.
        decides["prompts"].pop("drawn")
        return decides

    def differences(self, other: "RunSettings") -> list[str]:
        """Dotted names of the settings in which two runs differ, as far as they decide."""
        mine, theirs = (_flat(settings._deciding()) for settings in (self, other))
        return sorted(k for k in mine.keys() | theirs.keys() if mine.get(k) != theirs.get(k))


def _without_names(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_names(v) for k, v in value.items() if k not in _UNKEYED_FIELDS}
    return [_without_names(item) for item in value] if isinstance(value, list) else value


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _flat(inner, f"{prefix}.{key}" if prefix else key)
    return found


class _RecordLine(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SampleKey(NamedTuple):
    """One generation: by which method, for which prompt, which of its repeats."""

    method: str
    prompt: str
    repeat: int

    def __str__(self) -> str:
        return f"sample {self.repeat} of prompt {self.prompt} by {self.method}"


class SampleCounters(_RecordLine):
    """What one generation cost in passes and cache; `drafted` and `accepted` by draft position."""

    base_passes: int
    external_passes: int = 0
    tokens_fed: int
    drafted: list[int] = Field(default_factory=list)
    accepted: list[int] = Field(default_factory=list)
    cache_bytes: int = 0


class Sample(_RecordLine):
    """One generation, without its times: the same settings give the same line, byte for byte."""

    method: str
    prompt: str
    repeat: int
    seed: int
    text: str
    tokens: list[int]
    logprobs: list[FiniteFloat]  # the base's, nats
    # By which each token was drawn, nats: nothing where drafts were verified.
    drawn: list[FiniteFloat] = Field(default_factory=list)
    signals: dict[str, list[float] | list[list[float]]] = Field(default_factory=dict)
    finish: str
    counters: SampleCounters

    @model_validator(mode="after")
    def _complete(self) -> Self:
        """A perplexity over fewer log-probabilities than tokens would be a lie."""
        for name, values in (("logprobs", self.logprobs), ("drawn", self.drawn)):
            if len(values) != len(self.tokens) and (values or name == "logprobs"):
                raise ValueError(f"{len(values)} {name} for {len(self.tokens)} tokens")
        return self

    @property
    def key(self) -> SampleKey:
        return SampleKey(self.method, self.prompt, self.repeat)


class Timing(_RecordLine):
    """How long one generation took, its prompt included; `session` is one of environment.json's."""

    method: str
    prompt: str
    repeat: int
    seconds: FiniteFloat = Field(ge=0)
    session: int

    @property
    def key(self) -> SampleKey:
        return SampleKey(self.method, self.prompt, self.repeat)


# What the scorers said of each sample, by `role.label`.
SampleScores = dict[SampleKey, dict[str, float]]


class ScoredSample(NamedTuple):
    """A sample with its time and what the scorers said, by label."""

    sample: Sample
    timing: Timing
    scores: dict[str, float]


class MethodRows:
    """One method's samples, by prompt: every method has the same prompts in the same order."""

    def __init__(self, groups: Sequence[Sequence[ScoredSample]]) -> None:
        self.groups = groups

    def sums(self, of: Callable[[ScoredSample], float]) -> np.ndarray:
        """Per prompt, the sum over its samples."""
        return np.array([sum(of(row) for row in group) for group in self.groups], dtype=float)

    def means(self, of: Callable[[ScoredSample], float]) -> np.ndarray:
        """Per prompt, the mean over its samples."""
        return self.each(lambda group: sum(map(of, group)) / len(group))

    def each(self, of: Callable[[Sequence[ScoredSample]], float]) -> np.ndarray:
        """Per prompt, one value of all its samples."""
        return np.array([of(group) for group in self.groups], dtype=float)


def response_length(row: ScoredSample) -> float:
    return len(row.sample.tokens)


@dataclass(frozen=True)
class RunData:
    """Every method's rows, in the order of `prompts`, its record and parameters' bytes, and by role
    who scored."""

    prompts: tuple[BenchPrompt, ...]
    rows: Mapping[str, MethodRows]
    weights: Mapping[str, int]
    methods: Mapping[str, MethodRecord]
    scorers: Mapping[str, ScorerRecord]
    sampling: Mapping[str, Any]

    @property
    def greedy(self) -> bool:
        return self.sampling["temperature"] == 0

    @property
    def categories(self) -> list[str]:
        """Of the prompts, in their order; none where all are of one."""
        found = list(dict.fromkeys(prompt.category for prompt in self.prompts))
        return found if len(found) > 1 else []

    def only(self, category: str) -> Self:
        """The prompts of a category, with their rows."""
        kept = [prompt.category == category for prompt in self.prompts]
        rows = {
            name: MethodRows([group for group, keep in zip(own.groups, kept, strict=True) if keep])
            for name, own in self.rows.items()
        }
        return replace(self, prompts=tuple(compress(self.prompts, kept)), rows=rows)
