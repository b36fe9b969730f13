"""The lines of samples.jsonl and timings.jsonl, and samples grouped as metrics want them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SampleKey(NamedTuple):
    """One generation: by which method, for which prompt, which of its repeats."""

    method: str
    prompt: str
    repeat: int

    def __str__(self) -> str:
        return f"sample {self.repeat} of prompt {self.prompt} by {self.method}"


class Counters(_Line):
    """What one generation cost in passes and cache; `drafted` and `accepted` by draft position."""

    base_passes: int
    external_passes: int = 0
    tokens_fed: int
    drafted: list[int] = Field(default_factory=list)
    accepted: list[int] = Field(default_factory=list)
    cache_bytes: int = 0


class Sample(_Line):
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
    counters: Counters

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


class Timing(_Line):
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
Scores = dict[SampleKey, dict[str, float]]


class Scored(NamedTuple):
    """A sample with its time and what the scorers said, by label."""

    sample: Sample
    timing: Timing
    scores: dict[str, float]


class Rows:
    """One method's samples, by prompt: every method has the same prompts in the same order."""

    def __init__(self, groups: Sequence[Sequence[Scored]]) -> None:
        self.groups = groups

    def sums(self, of: Callable[[Scored], float]) -> np.ndarray:
        """Per prompt, the sum over its samples."""
        return np.array([sum(of(row) for row in group) for group in self.groups], dtype=float)

    def means(self, of: Callable[[Scored], float]) -> np.ndarray:
        """Per prompt, the mean over its samples."""
        return self.each(lambda group: sum(map(of, group)) / len(group))

    def each(self, of: Callable[[Sequence[Scored]], float]) -> np.ndarray:
        """Per prompt, one value of all its samples."""
        return np.array([of(group) for group in self.groups], dtype=float)
