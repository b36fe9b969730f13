"""A finished run read back from its folder without its models, and scored by another scorer.

Nothing is generated again: figures follow from the stored samples, timings and scores."""

from dataclasses import dataclass, replace
from pathlib import Path

from otter_cli.benchmarks.benchmark import Benchmark
from otter_cli.benchmarks.records import RunData
from otter_cli.benchmarks.results import BenchmarkName, BenchmarkResult
from otter_cli.benchmarks.runner.run_benchmark import add_scores, aggregate
from otter_cli.benchmarks.runner.run_folder import RunFiles, RunFolder
from otter_cli.benchmarks.tasks.detection import Detection
from otter_cli.benchmarks.tasks.detox import Detox, require_toxicity_label
from otter_cli.benchmarks.tasks.preference import GOLD, Preference, require_independent_judge
from otter_cli.benchmarks.tasks.speedup import Speedup
from otter_cli.core.errors import OtterError
from otter_cli.scorers.scorer import Scorer

BENCHMARKS: dict[BenchmarkName, type[Benchmark]] = {
    kind.name: kind for kind in (Preference, Detox, Detection, Speedup)
}

# By benchmark, the role of the scorer that `rescore` may replace, and the kind of scorer it takes.
REPLACEABLE_SCORERS = {"preference": (GOLD, "reward-model"), "detox": ("detoxify", "detoxify")}


@dataclass(frozen=True)
class StoredRun:
    """A run's folder, its result, and the data that its figures are computed from."""

    folder: Path
    result: BenchmarkResult
    data: RunData

    @property
    def kind(self) -> type[Benchmark]:
        return BENCHMARKS[self.result.benchmark]


def read_run(folder: Path) -> StoredRun:
    """Raises OtterError where the run is not finished, or lines of its files are missing."""
    result = BenchmarkResult.read(folder)
    parameter_bytes = {name: method.memory.weights for name, method in result.methods.items()}
    data = RunFiles(folder).load(result.settings, parameter_bytes, result.scorers)
    return StoredRun(folder, result, data)


def rescore_run(folder: Path, scorer: Scorer) -> BenchmarkResult:
    """The run's result by `scorer` in place of its own; scores.jsonl and result.json follow.

    Raises OtterError for a benchmark without a scorer, and for a scorer that does not fit it.
    """
    result = BenchmarkResult.read(folder)
    role = _scorer_role(result, scorer)
    with RunFolder.opened(folder, result.settings) as files:
        stored = read_run(folder)
        add_scores(stored.data, role, scorer)
        data = replace(stored.data, scorers={**stored.data.scorers, role: scorer.record})
        divergences = {name: m.divergences for name, m in stored.result.methods.items()}
        methods = aggregate(stored.kind, data, divergences)
        update = {
            "scorers": dict(data.scorers),
            "methods": methods,
            "fronts": stored.kind.fronts(data),
            "findings": stored.kind.findings(methods),
        }
        result = stored.result.model_copy(update=update)
        files.write_scores(data)
        result.write(folder)
    return result


def _scorer_role(result: BenchmarkResult, scorer: Scorer) -> str:
    if result.benchmark not in REPLACEABLE_SCORERS:
        raise OtterError(
            f"a run of {result.benchmark} has no scorer: its figures are counted",
            hint=f"runs of {' and '.join(REPLACEABLE_SCORERS)} have one",
        )
    role, kind = REPLACEABLE_SCORERS[result.benchmark]
    if scorer.record.kind != kind:
        raise OtterError(
            f"a run of {result.benchmark} is judged by a {kind}, "
            f"and {scorer.record.name} is a {scorer.record.kind}",
            hint=f"give --scorer {kind}:FOLDER",
        )
    if role == GOLD:
        guides = {
            model.weights: name
            for name, method in result.settings.methods.items()
            for model in method.models
        }
        require_independent_judge(scorer.record.digest, guides)
    else:
        require_toxicity_label(scorer)
    return role
