"""The records of a run: its settings (run.yaml), samples, timings and scores.

The digest of the settings is the run's key. `MethodRows` groups samples by prompt, as metrics need
them. `RunData` holds the rows of every method, of a run that just ended or of a stored one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any, NamedTuple, Self

import numpy as np
from pydantic import Field, FiniteFloat, model_validator

from otter_cli.benchmarks.prompts import BenchPrompt, PromptsRecord
from otter_cli.core.digests import sha256_json
from otter_cli.core.strict_config import StrictRecord
from otter_cli.scorers.load import ModelRecord
from otter_cli.scorers.scorer import ScorerRecord

PLAIN, INSERTION, TASK_HEAD = "plain", "insertion", "task-head"
ARGS, PROMPT_LOOKUP = "args", "prompt-lookup"
# `insertion@0.5` is the method `insertion` at strength 0.5.
STRENGTH_MARK = "@"

SCHEMA_VERSION = 1

# Names are recorded and are no part of a run's key. Digests identify what they name.
_UNKEYED_FIELDS = ("name", "file", "label")


def method_family(method: str) -> str:
    """The method's name without its strength."""
    return method.partition(STRENGTH_MARK)[0]


class MethodRecord(StrictRecord):
    """One way of generating: the models it uses and how it is steered or drafted."""

    label: str
    models: list[ModelRecord]
    steering: dict[str, Any] = Field(default_factory=dict)


class RunSettings(StrictRecord):
    """The settings of a run, in run.yaml. `together` prompts share a call."""

    schema_version: int = SCHEMA_VERSION
    benchmark: str
    prompts: PromptsRecord
    methods: dict[str, MethodRecord]
    sampling: dict[str, Any]
    samples_per_prompt: int
    batch: int
    together: int = 1
    seed: int

    @property
    def key(self) -> str:
        """Equal for equal settings, wherever the files are."""
        return sha256_json(self._keyed())

    def differences(self, other: "RunSettings") -> list[str]:
        """Dotted names of the keyed settings in which two runs differ."""
        first, second = (_flat(settings._keyed()) for settings in (self, other))
        names = first.keys() | second.keys()
        return sorted(name for name in names if first.get(name) != second.get(name))

    def _keyed(self) -> dict[str, Any]:
        # Runs from before prompts could share a call keep their keys.
        exclude = {"together"} if self.together == 1 else set()
        keyed: dict[str, Any] = _without_names(self.model_dump(mode="json", exclude=exclude))
        # The digest of the prompts says which they are.
        keyed["prompts"].pop("drawn")
        return keyed


def _without_names(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_names(v) for k, v in value.items() if k not in _UNKEYED_FIELDS}
    return [_without_names(item) for item in value] if isinstance(value, list) else value


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}.{key}" if prefix else key)
    return flat


class SampleKey(NamedTuple):
    """Identifies one generation: its method, its prompt, and its number among the repeats."""

    method: str
    prompt: str
    repeat: int

    def __str__(self) -> str:
        return f"sample {self.repeat} of prompt {self.prompt} by {self.method}"


class _KeyedRecord(StrictRecord):
    """A line about one generation."""

    method: str
    prompt: str
    repeat: int

    @property
    def key(self) -> SampleKey:
        return SampleKey(self.method, self.prompt, self.repeat)


class SampleCounters(StrictRecord):
    """Passes and cache of one generation. `drafted` and `accepted` are by draft position."""

    base_passes: int
    external_passes: int = 0
    tokens_fed: int
    drafted: list[int] = Field(default_factory=list)
    accepted: list[int] = Field(default_factory=list)
    cache_bytes: int = 0


class Sample(_KeyedRecord):
    """One generation, without its time: equal settings give equal lines, byte for byte.

    `logprobs`: of each token under the base, nats. `drawn`: log-probability with which each token
    was drawn, nats; empty where drafts were verified."""

    seed: int
    text: str
    tokens: list[int]
    logprobs: list[FiniteFloat]
    drawn: list[FiniteFloat] = Field(default_factory=list)
    signals: dict[str, list[float] | list[list[float]]] = Field(default_factory=dict)
    finish: str
    counters: SampleCounters

    @model_validator(mode="after")
    def _complete(self) -> Self:
        """A perplexity is over all tokens, so each token needs its log-probability."""
        for name, values in (("logprobs", self.logprobs), ("drawn", self.drawn)):
            if len(values) != len(self.tokens) and (values or name == "logprobs"):
                raise ValueError(f"{len(values)} {name} for {len(self.tokens)} tokens")
        return self


class Timing(_KeyedRecord):
    """Seconds of one generation, prefill included. `session` is an index into environment.json."""

    seconds: FiniteFloat = Field(ge=0)
    session: int


class ScoredSample(NamedTuple):
    """A sample with its time and its scores, by `role.label`."""

    sample: Sample
    timing: Timing
    scores: dict[str, float]


class MethodRows:
    """The samples of one method, grouped by prompt. Every method has the prompts in one order."""

    def __init__(self, groups: Sequence[Sequence[ScoredSample]]) -> None:
        self.groups = groups

    def sums(self, value: Callable[[ScoredSample], float]) -> np.ndarray:
        """Per prompt, the sum over its samples: [prompts]."""
        return self.each(lambda group: sum(map(value, group)))

    def means(self, value: Callable[[ScoredSample], float]) -> np.ndarray:
        """Per prompt, the mean over its samples: [prompts]."""
        return self.each(lambda group: sum(map(value, group)) / len(group))

    def each(self, value: Callable[[Sequence[ScoredSample]], float]) -> np.ndarray:
        """Per prompt, one value of all its samples: [prompts]."""
        return np.array([value(group) for group in self.groups], dtype=float)


def response_length(row: ScoredSample) -> float:
    """Tokens of the response."""
    return len(row.sample.tokens)


@dataclass(frozen=True)
class RunData:
    """What metrics are computed from. By method: its rows in the order of `prompts`, the bytes of
    its parameters, and its record. By role: the record of the scorer."""

    prompts: tuple[BenchPrompt, ...]
    rows: Mapping[str, MethodRows]
    parameter_bytes: Mapping[str, int]
    methods: Mapping[str, MethodRecord]
    scorers: Mapping[str, ScorerRecord]
    sampling: Mapping[str, Any]

    @property
    def greedy(self) -> bool:
        return self.sampling["temperature"] == 0

    @property
    def categories(self) -> list[str]:
        """Categories of the prompts, in their order; empty where there is only one."""
        names = list(dict.fromkeys(prompt.category for prompt in self.prompts))
        return names if len(names) > 1 else []

    def only(self, category: str) -> Self:
        """The prompts of a category, with their rows."""
        kept = [prompt.category == category for prompt in self.prompts]
        rows = {name: MethodRows(list(compress(r.groups, kept))) for name, r in self.rows.items()}
        return replace(self, prompts=tuple(compress(self.prompts, kept)), rows=rows)
