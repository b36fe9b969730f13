"""What a benchmark is: prompts, methods and scorers to run, and figures to draw from the rows."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from otter_cli.benchmarks.drawn import Drawn
from otter_cli.benchmarks.front import Front
from otter_cli.benchmarks.measures import Measures, cache_bytes, costs
from otter_cli.benchmarks.models import Grafted
from otter_cli.benchmarks.names import PLAIN
from otter_cli.benchmarks.prompts import BenchPrompt
from otter_cli.benchmarks.records import Rows
from otter_cli.benchmarks.result import BenchmarkName, Divergence, MethodResult
from otter_cli.benchmarks.scorers import Scorer
from otter_cli.benchmarks.settings import MethodRecord, PromptsRecord, RunSettings
from otter_cli.core.intervals import mean

if TYPE_CHECKING:
    from otter_cli.decoding import Generation, Sampling

Generate = Callable[[list[list[int]], "Sampling"], "list[Generation]"]


@dataclass(frozen=True)
class Method:
    """A way of generating. `weights`: bytes of all parameters that it needs, models together;
    `judge`: what guides it, asked for its opinion of a whole response; `warnings`: signals that it
    reads where they were not trained."""

    label: str
    record: MethodRecord
    generate: Generate
    weights: int
    judge: Scorer | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Setting:
    """What all methods of a run share: `repeats` continuations a prompt, `batch` at a time, of
    each of `together` prompts."""

    prompts: Sequence[BenchPrompt]
    record: PromptsRecord
    sampling: "Sampling"
    repeats: int = 1
    batch: int = 1
    seed: int = 0
    together: int = 1


class Benchmark(ABC):
    """One run, ready to go: what `graft` can do, against its base in plain decoding, which is
    the first of `methods`, and others. `scorers` are keyed by role."""

    name: ClassVar[BenchmarkName]
    # Which figures are told for each category of prompts, too.
    by_category: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        setting: Setting,
        graft: Grafted,
        methods: Mapping[str, Method],
        scorers: Mapping[str, Scorer],
    ) -> None:
        self.setting, self.graft, self.methods, self.scorers = setting, graft, methods, scorers

    @classmethod
    @abstractmethod
    def measures(cls, method: str, drawn: Drawn) -> Measures:
        """The figures of one method, with every method's rows at hand for comparisons. They need
        no model, so that a stored run gives them again."""

    @classmethod
    @abstractmethod
    def findings(cls, methods: Mapping[str, MethodResult]) -> list[str]:
        """What the figures say, in whole sentences, bad news included."""

    @classmethod
    def fronts(cls, drawn: Drawn) -> dict[str, Front]:
        """What more strength buys, for benchmarks in which it buys something."""
        return {}

    def divergences(self, method: str, rows: Mapping[str, Rows]) -> list[Divergence]:
        """Where the output is not plain decoding's, for benchmarks in which it should be."""
        return []

    @classmethod
    def costs(cls, method: str, drawn: Drawn) -> Measures:
        """What every benchmark tells of a method: its length, time, passes and memory."""
        rows = drawn.rows[method]
        held = drawn.weights[method] + cache_bytes(rows)
        return {**costs(rows, drawn.rows[PLAIN]), "memory": mean(held)}

    def warnings(self) -> list[str]:
        return [f"{name}: {text}" for name, own in self.methods.items() for text in own.warnings]

    def settings(self) -> RunSettings:
        sampling = self.setting.sampling
        return RunSettings(
            benchmark=self.name,
            prompts=self.setting.record,
            methods={name: method.record for name, method in self.methods.items()},
            sampling={
                "max_new_tokens": sampling.max_new_tokens,
                "temperature": sampling.temperature,
                "top_k": sampling.top_k,
                "top_p": sampling.top_p,
                "ignore_eos": sampling.ignore_eos,
            },
            samples_per_prompt=self.setting.repeats,
            batch=self.setting.batch,
            together=self.setting.together,
            seed=self.setting.seed,
        )
