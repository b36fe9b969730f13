"""Scores of stored samples, and the rows that figures are drawn from."""

from collections.abc import Mapping, Sequence

from otter_cli.benchmarks.benchmark import Benchmark
from otter_cli.benchmarks.prompts import BenchPrompt
from otter_cli.benchmarks.records import Rows, Sample, SampleKey, Scored, Scores
from otter_cli.benchmarks.run_folder import RunFolder
from otter_cli.benchmarks.scorers import Exchange, Scorer, score_all
from otter_cli.core.console import progress
from otter_cli.core.errors import OtterError


def scored_rows(benchmark: Benchmark, folder: RunFolder) -> dict[str, Rows]:
    """Every method's samples with their scores, which scores.jsonl then holds. Raises OtterError
    where a sample is missing or a scorer fails."""
    samples, timings = folder.samples(), folder.timings()
    groups = {
        method: [
            [SampleKey(method, prompt.name, i) for i in range(benchmark.setting.repeats)]
            for prompt in benchmark.setting.prompts
        ]
        for method in benchmark.methods
    }
    expected = [key for grouped in groups.values() for keys in grouped for key in keys]
    for key in expected:
        if key not in samples or key not in timings:
            raise OtterError(
                f"{folder.path}: {key} is missing",
                hint="no figure is drawn from less than all samples: give the command again",
            )
    scores = score_samples(
        benchmark.scorers, benchmark.setting.prompts, [samples[key] for key in expected]
    )
    folder.write_scores(scores)
    return {
        method: Rows(
            [[Scored(samples[k], timings[k], scores[k]) for k in keys] for keys in grouped]
        )
        for method, grouped in groups.items()
    }


def score_samples(
    scorers: Mapping[str, Scorer], prompts: Sequence[BenchPrompt], samples: Sequence[Sample]
) -> Scores:
    """By sample, the scores of all scorers, named `role.label`."""
    found: Scores = {sample.key: {} for sample in samples}
    exchanges = _exchanges(prompts, samples)
    for role, scorer in scorers.items():
        with progress(len(samples), f"scores of {scorer.record.name}") as advance:
            columns = score_all(scorer, exchanges, advance)
        for label, values in columns.items():
            for sample, value in zip(samples, values, strict=True):
                found[sample.key][f"{role}.{label}"] = value
    return found


def _exchanges(prompts: Sequence[BenchPrompt], samples: Sequence[Sample]) -> list[Exchange]:
    named = {prompt.name: prompt for prompt in prompts}
    return [
        Exchange(
            name=str(sample.key),
            prompt=named[sample.prompt].text,
            response=sample.text,
            prompt_tokens=named[sample.prompt].tokens,
            response_tokens=tuple(sample.tokens),
            messages=named[sample.prompt].messages,
        )
        for sample in samples
    ]
