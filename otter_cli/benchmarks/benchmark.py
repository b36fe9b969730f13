"""What a benchmark is: prompts, methods and scorers to run, and metrics to compute from the rows.

A `Method` is one way of generating, with a record of what it uses. A `Benchmark` says which metrics
its rows give and which sentences summarise them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from otter_cli.benchmarks.metrics.estimates import Measures, metric_info
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
    """A way of generating. `parameter_bytes`: of all models that it needs. `judge`: the scorer
    behind its guide, applied to whole responses. `warnings`: signals that it reads where they were
    not trained."""

    record: MethodRecord
    generate: GenerateFunction
    parameter_bytes: int
    judge: Scorer | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class BenchmarkSetting:
    """What all methods of a run share. Each call generates `batch` of the `samples_per_prompt`
    responses, for each of `prompts_per_call` prompts."""

    prompts: Sequence[BenchPrompt]
    record: PromptsRecord
    sampling: "Sampling"
    samples_per_prompt: int = 1
    batch: int = 1
    seed: int = 0
    prompts_per_call: int = 1


class Benchmark(ABC):
    """One run, ready to start. The first of `methods` is plain decoding of the graft's base, which
    the others are compared with. `scorers` are keyed by role.

    Metrics, findings and fronts are class methods: they need no model, so a stored run gives them
    again."""

    name: ClassVar[BenchmarkName]
    # The metrics that are computed for each category of prompts, too.
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
    def measures(cls, method: str, data: RunData) -> Measures:
        """The metrics of one method. Every method's rows are in `data`, for comparisons."""

    @classmethod
    @abstractmethod
    def findings(cls, methods: Mapping[str, MethodResult]) -> list[str]:
        """The figures in whole sentences, bad news included."""

    @classmethod
    def fronts(cls, data: RunData) -> dict[str, ParetoFront]:
        """Pareto fronts by family of methods, for benchmarks that vary a strength."""
        return {}

    def divergences(self, method: str, rows: Mapping[str, MethodRows]) -> list[Divergence]:
        """Where the output is not plain decoding's, for benchmarks in which it should be."""
        return []

    @classmethod
    def costs(cls, method: str, data: RunData) -> Measures:
        """The metrics of every benchmark: length, time, passes and memory."""
        rows = data.rows[method]
        memory = data.parameter_bytes[method] + peak_cache_bytes(rows)
        return {**cost_metrics(rows, data.rows[PLAIN]), "memory": mean(memory)}

    def warnings(self) -> list[str]:
        return [f"{name}: {text}" for name, m in self.methods.items() for text in m.warnings]

    def settings(self) -> RunSettings:
        keys = ("max_new_tokens", "temperature", "top_k", "top_p", "ignore_eos")
        return RunSettings(
            benchmark=self.name,
            prompts=self.setting.record,
            methods={name: method.record for name, method in self.methods.items()},
            sampling={key: getattr(self.setting.sampling, key) for key in keys},
            samples_per_prompt=self.setting.samples_per_prompt,
            batch=self.setting.batch,
            together=self.setting.prompts_per_call,
            seed=self.setting.seed,
        )


# Figures that depend on the machine and its load.
_TIMES = ("speed_up", "tokens_per_second", "time_per_token", "time_ratio")


def figure_text(method: MethodResult, metric: str, *, scale: float = 1, unit: str = "") -> str:
    """`1.43 (1.38 to 1.48)`, or `1.43 times (1.38 to 1.48)`. The interval of a time holds within
    its run alone, and the text says so."""
    figure = method.metrics[metric]
    mean, low, high = (f"{scale * value:.3g}" for value in (figure.mean, figure.low, figure.high))
    where = " within this run" if metric in _TIMES else ""
    return f"{mean}{unit} ({low} to {high}{where})"


def share_text(method: MethodResult, metric: str) -> str:
    """`43.1 % (40.2 to 46)`."""
    return figure_text(method, metric, scale=100, unit=" %")


def difference_sentence(method: MethodResult, metric: str) -> str:
    """The paired difference from plain, and whether its interval leaves out 0."""
    figure = method.against_plain[metric]
    info = metric_info(metric)
    by = f"{info.label} {figure.mean:+.3g} against plain ({figure.low:+.3g} to {figure.high:+.3g})"
    if figure.low <= 0 <= figure.high:
        return f"{method.label}: {by}, no difference shown"
    better = (figure.mean > 0) == (info.better == "higher")
    return f"{method.label}: {by}, {'better' if better else 'worse'}"
