"""A finished run read back from its folder, without its models."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from otter_cli.benchmarks.benchmark import Benchmark
from otter_cli.benchmarks.drawn import Drawn
from otter_cli.benchmarks.kinds import KINDS
from otter_cli.benchmarks.prompts import BenchPrompt
from otter_cli.benchmarks.records import Rows, SampleKey, Scored, Scores
from otter_cli.benchmarks.result import Result
from otter_cli.benchmarks.run_files import RunFiles
from otter_cli.benchmarks.scorers import ScorerRecord
from otter_cli.core.errors import OtterError


@dataclass(frozen=True)
class Stored:
    """A run's folder, its result, and what its figures are drawn from."""

    folder: Path
    result: Result
    drawn: Drawn

    @property
    def kind(self) -> type[Benchmark]:
        return KINDS[self.result.benchmark]


def read_run(folder: Path) -> Stored:
    """Raises OtterError where the run is not finished, or lines of its files are missing."""
    result, files = Result.read(folder), RunFiles(folder)
    drawn = draw(files, result, files.scores(), result.scorers)
    return Stored(folder, result, drawn)


def draw(
    files: RunFiles, result: Result, scores: Scores, scorers: Mapping[str, ScorerRecord]
) -> Drawn:
    """The rows of every method, with these scores. Raises OtterError for a line that is missing."""
    prompts, samples, timings = files.prompts(), files.samples(), files.timings()

    def scored(key: SampleKey) -> Scored:
        for name, lines in (("samples", samples), ("timings", timings), ("scores", scores)):
            if key not in lines:
                raise OtterError(
                    f"{files.path / name}.jsonl: {key} is missing",
                    hint="give the command of the run again: it makes what is missing",
                )
        return Scored(samples[key], timings[key], scores[key])

    def rows(method: str) -> Rows:
        repeats = range(result.settings.samples_per_prompt)
        return Rows([[scored(SampleKey(method, p.name, i)) for i in repeats] for p in prompts])

    _require_prompts(files.path, prompts, result)
    return Drawn(
        prompts=tuple(prompts),
        rows={method: rows(method) for method in result.methods},
        weights={name: method.memory.weights for name, method in result.methods.items()},
        methods=result.settings.methods,
        scorers=scorers,
        sampling=result.settings.sampling,
    )


def _require_prompts(folder: Path, prompts: list[BenchPrompt], result: Result) -> None:
    if len(prompts) != result.settings.prompts.count:
        raise OtterError(
            f"{folder / 'prompts.jsonl'} holds {len(prompts)} prompts, "
            f"and the run had {result.settings.prompts.count}",
            hint="give the command of the run again: it writes them",
        )
