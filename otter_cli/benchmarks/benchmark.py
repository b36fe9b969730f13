"""What a benchmark is: prompts, methods and scorers to run, and metrics to compute from the rows.

A Method is one way of generating, with a record of what it used. A Benchmark says which metrics
its rows give and which sentences summarise them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from otter_cli.benchmarks.metrics.estimates import Estimate, Measures, metric_info
from otter_cli.benchmarks.metrics.measures import cost_metrics, peak_cache_bytes
from otter_cli.benchmarks.prompts import BenchPrompt, PromptsRecord
from otter_cli.benchmarks.records import PLAIN, MethodRecord, MethodRows, RunData, RunSettings
from otter_cli.benchmarks.results import BenchmarkName, Divergence, MethodResult, ParetoFront
from otter_cli.core.intervals import mean
from otter_cli.scorers.load import LoadedGraft
from otter_cli.scorers.scorer import Scorer

if TYPE_CHECKING:
    from otter_cli.decoding.results import Generation
    from otter_cli.decoding.sampling import Sampling


GenerateFunction = Callable[[list[list[int]], "Sampling"], "list[Generation]"]


@dataclass(frozen=True)
class Method:
    """A way of generating. `weights`: bytes of all parameters that it needs, models together;
    `judge`: what guides it, asked for its opinion of a whole response; `warnings`: signals that it
    reads where they were not trained."""

    label: str
    record: MethodRecord
    generate: GenerateFunction
    weights: int
    judge: Scorer | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class BenchmarkSetting:
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
        setting: BenchmarkSetting,
        graft: LoadedGraft,
        methods: Mapping[str, Method],
        scorers: Mapping[str, Scorer],
    ) -> None:
        self.setting, self.graft, self.methods, self.scorers = setting, graft, methods, scorers

    @classmethod
    @abstractmethod
    def measures(cls, method: str, drawn: RunData) -> Measures:
        """The figures of one method, with every method's rows at hand for comparisons. They need
        no model, so that a stored run gives them again."""

    @classmethod
    @abstractmethod
    def findings(cls, methods: Mapping[str, MethodResult]) -> list[str]:
        """What the figures say, in whole sentences, bad news included."""

    @classmethod
    def fronts(cls, drawn: RunData) -> dict[str, ParetoFront]:
        """What more strength buys, for benchmarks in which it buys something."""
        return {}

    def divergences(self, method: str, rows: Mapping[str, MethodRows]) -> list[Divergence]:
        """Where the output is not plain decoding's, for benchmarks in which it should be."""
        return []

    @classmethod
    def costs(cls, method: str, drawn: RunData) -> Measures:
        """What every benchmark tells of a method: its length, time, passes and memory."""
        rows = drawn.rows[method]
        held = drawn.weights[method] + peak_cache_bytes(rows)
        return {**cost_metrics(rows, drawn.rows[PLAIN]), "memory": mean(held)}

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


def figure_text(method: MethodResult, metric: str) -> str:
    """`1.43 (1.38 to 1.48)`."""
    return interval_text(method.metrics[metric])


def interval_text(figure: Estimate) -> str:
    return f"{figure.mean:.3g} ({figure.low:.3g} to {figure.high:.3g})"


def share_text(method: MethodResult, metric: str) -> str:
    """`43.1 % (40.2 to 46.0)`."""
    figure = method.metrics[metric]
    return f"{100 * figure.mean:.3g} % ({100 * figure.low:.3g} to {100 * figure.high:.3g})"


def ratio_text(method: MethodResult, metric: str) -> str:
    """`1.43 times (1.38 to 1.48)`."""
    figure = method.metrics[metric]
    return f"{figure.mean:.3g} times ({figure.low:.3g} to {figure.high:.3g})"


def difference_sentence(method: MethodResult, metric: str) -> str:
    """The paired difference, and whether its interval leaves nought out."""
    figure = method.against_plain[metric]
    name = metric_info(metric)
    by = f"{name.label} {figure.mean:+.3g} against plain ({figure.low:+.3g} to {figure.high:+.3g})"
    if figure.low <= 0 <= figure.high:
        return f"{method.label}: {by}, no difference shown"
    better = (figure.mean > 0) == (name.better == "higher")
    return f"{method.label}: {by}, {'better' if better else 'worse'}"
