"""A finished run read back from its folder without its models, and scored by another scorer.

Nothing is generated again: figures follow from the stored samples, timings and scores."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from otter_cli.benchmarks.benchmark import Benchmark
from otter_cli.benchmarks.prompts import BenchPrompt
from otter_cli.benchmarks.records import MethodRows, RunData, SampleKey, SampleScores, ScoredSample
from otter_cli.benchmarks.results import BenchmarkName, BenchmarkResult
from otter_cli.benchmarks.runner.run_benchmark import aggregate, score_samples
from otter_cli.benchmarks.runner.run_folder import RunFiles, RunFolder
from otter_cli.benchmarks.tasks.detection import Detection
from otter_cli.benchmarks.tasks.detox import Detox, require_toxicity_label
from otter_cli.benchmarks.tasks.preference import GOLD, Preference, require_independent_judge
from otter_cli.benchmarks.tasks.speedup import Speedup
from otter_cli.core.errors import OtterError
from otter_cli.scorers.scorer import Scorer, ScorerRecord

BENCHMARKS: dict[BenchmarkName, type[Benchmark]] = {
    kind.name: kind for kind in (Preference, Detox, Detection, Speedup)
}


@dataclass(frozen=True)
class StoredRun:
    """A run's folder, its result, and what its figures are drawn from."""

    folder: Path
    result: BenchmarkResult
    drawn: RunData

    @property
    def kind(self) -> type[Benchmark]:
        return BENCHMARKS[self.result.benchmark]


def read_run(folder: Path) -> StoredRun:
    """Raises OtterError where the run is not finished, or lines of its files are missing."""
    result, files = BenchmarkResult.read(folder), RunFiles(folder)
    drawn = load_run_data(files, result, files.scores(), result.scorers)
    return StoredRun(folder, result, drawn)


def load_run_data(
    files: RunFiles,
    result: BenchmarkResult,
    scores: SampleScores,
    scorers: Mapping[str, ScorerRecord],
) -> RunData:
    """The rows of every method, with these scores. Raises OtterError for a line that is missing."""
    prompts, samples, timings = files.prompts(), files.samples(), files.timings()

    def scored(key: SampleKey) -> ScoredSample:
        for name, lines in (("samples", samples), ("timings", timings), ("scores", scores)):
            if key not in lines:
                raise OtterError(
                    f"{files.path / name}.jsonl: {key} is missing",
                    hint="give the command of the run again: it makes what is missing",
                )
        return ScoredSample(samples[key], timings[key], scores[key])

    def rows(method: str) -> MethodRows:
        repeats = range(result.settings.samples_per_prompt)
        return MethodRows(
            [[scored(SampleKey(method, p.name, i)) for i in repeats] for p in prompts]
        )

    _require_prompts(files.path, prompts, result)
    return RunData(
        prompts=tuple(prompts),
        rows={method: rows(method) for method in result.methods},
        weights={name: method.memory.weights for name, method in result.methods.items()},
        methods=result.settings.methods,
        scorers=scorers,
        sampling=result.settings.sampling,
    )


def _require_prompts(folder: Path, prompts: list[BenchPrompt], result: BenchmarkResult) -> None:
    if len(prompts) != result.settings.prompts.count:
        raise OtterError(
            f"{folder / 'prompts.jsonl'} holds {len(prompts)} prompts, "
            f"and the run had {result.settings.prompts.count}",
            hint="give the command of the run again: it writes them",
        )


# Which scorer of a benchmark may be another, and the kind that it takes.
REPLACEABLE_SCORERS = {"preference": (GOLD, "reward-model"), "detox": ("detoxify", "detoxify")}


def rescore_run(folder: Path, scorer: Scorer) -> BenchmarkResult:
    """The run's result by `scorer` in place of its judge; scores.jsonl and result.json follow.

    Raises OtterError for a benchmark without a judge, and for a scorer that does not fit it.
    """
    stored = read_run(folder)
    role = _scorer_role(stored.result, scorer)
    old, record = stored.result, scorer.record
    with RunFolder.opened(folder, old.settings) as files:
        samples = list(files.samples().values())
        fresh = score_samples({role: scorer}, stored.drawn.prompts, samples)
        scores: SampleScores = {
            key: {k: v for k, v in kept.items() if not k.startswith(f"{role}.")} | fresh[key]
            for key, kept in files.scores().items()
        }
        drawn = load_run_data(files, old, scores, {**old.scorers, role: record})
        methods = {
            name: aggregate(stored.kind, name, method.label, drawn, method.divergences)
            for name, method in old.methods.items()
        }
        result = old.model_copy(
            update={
                "scorers": dict(drawn.scorers),
                "methods": methods,
                "fronts": stored.kind.fronts(drawn),
                "findings": stored.kind.findings(methods),
            }
        )
        files.write_scores(scores)
        files.write_result(result)
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
