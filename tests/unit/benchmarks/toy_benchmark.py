"""A benchmark without a model: methods that write words by a seeded rule, at known speeds."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from otter_cli.benchmarks.benchmark import Benchmark, BenchmarkSetting, Method
from otter_cli.benchmarks.metrics.estimates import Measures
from otter_cli.benchmarks.metrics.measures import diversity, perplexity
from otter_cli.benchmarks.prompts import BenchPrompt, PromptsRecord
from otter_cli.benchmarks.records import MethodRecord, RunData
from otter_cli.benchmarks.results import MethodResult
from otter_cli.core.intervals import mean
from otter_cli.scorers.load import ModelRecord
from otter_cli.scorers.scorer import RuleScorer, Scorer

WORDS = ["a", "b", "c", "d", "e", "f", "g", "h"]


@dataclass(frozen=True)
class ToySampling:
    max_new_tokens: int = 8
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    ignore_eos: bool = False


@dataclass
class ToyCounters:
    base_passes: int = 8
    external_passes: int = 0
    tokens_fed: int = 8
    tokens_kept: int = 8
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    seconds: float = 0.0
    prefill_seconds: float = 0.0
    cache_bytes: int = 100


@dataclass
class ToyGeneration:
    tokens: list[int]
    logprobs: list[float]
    signals: dict[str, list[float]] = field(default_factory=dict)
    finish: str = "length"
    counters: ToyCounters = field(default_factory=ToyCounters)
    drawn: list[float] = field(default_factory=list)


class ToyTokenizer:
    eos_token_id = None

    def decode(self, tokens, skip_special_tokens: bool = True) -> str:
        return "".join(f" {WORDS[token]}" for token in tokens)


class ToyMethod:
    """Seeded words; counts its calls and can be told to die after some."""

    def __init__(self, words: int = len(WORDS)) -> None:
        self.words, self.calls, self.dies_after = words, 0, -1

    def __call__(self, prompts: list[list[int]], sampling: ToySampling) -> list[ToyGeneration]:
        if self.calls == self.dies_after:
            raise KeyboardInterrupt
        self.calls += 1
        made = []
        for row, prompt in enumerate(prompts):
            rng = random.Random(f"{sampling.seed} {row} {prompt}")
            tokens = [rng.randrange(self.words) for _ in range(sampling.max_new_tokens)]
            made.append(ToyGeneration(tokens, [-rng.random() for _ in tokens]))
        return made


class ToyGraft:
    tokenizer = ToyTokenizer()
    model: Any = None


class ToyBenchmark(Benchmark):
    name = "preference"

    @classmethod
    def measures(cls, method: str, data: RunData) -> Measures:
        own = data.rows[method]
        return {
            "gold_reward": mean(own.means(lambda row: row.scores["gold.reward"])),
            "diversity": mean(own.means(lambda row: diversity(row.sample.text))),
            "perplexity": perplexity(own),
            **cls.costs(method, data),
        }

    @classmethod
    def findings(cls, methods: Mapping[str, MethodResult]) -> list[str]:
        return [f"{len(methods)} methods"]


def toy_benchmark(
    *,
    prompts: int = 4,
    repeats: int = 3,
    batch: int = 2,
    together: int = 1,
    seed: int = 0,
    max_new_tokens: int = 8,
    gold: Scorer | None = None,
    generate: Mapping[str, Any] | None = None,
) -> ToyBenchmark:
    """Plain decoding of eight words, and a method that knows two."""
    texts = [BenchPrompt(str(i + 1), f" {WORDS[i]}", (i,)) for i in range(prompts)]
    record = PromptsRecord(file="toy.txt", digest=f"{prompts}", count=prompts, truncated=0)
    generate = generate or {"plain": ToyMethod(), "dull": ToyMethod(words=2)}
    methods = {
        name: Method(
            record=MethodRecord(
                label=name, models=[ModelRecord(name="toy", kind="otter", weights="0")]
            ),
            generate=call,
            parameter_bytes=1_000,
        )
        for name, call in generate.items()
    }
    rule = RuleScorer("words", lambda _, text: float(len(set(text.split()))), digest="1")
    setting = BenchmarkSetting(
        texts, record, ToySampling(max_new_tokens), repeats, batch, seed, together
    )  # type: ignore[arg-type]
    return ToyBenchmark(setting, ToyGraft(), methods, {"gold": gold or rule})  # type: ignore[arg-type]


def counted(values: list[list[float]]) -> np.ndarray:
    return np.array(values)
