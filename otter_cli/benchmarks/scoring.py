"""Scores of stored samples, and the rows that figures are drawn from."""

import json
from collections.abc import Sequence

from otter_cli.benchmarks.benchmark import Benchmark
from otter_cli.benchmarks.records import Rows, Sample, SampleKey, Scored
from otter_cli.benchmarks.run_folder import RunFolder
from otter_cli.benchmarks.scorers import Exchange, score_all
from otter_cli.core.atomic import write_text
from otter_cli.core.console import progress
from otter_cli.core.errors import OtterError

Scores = dict[SampleKey, dict[str, float]]


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
    scores = _scores(benchmark, [samples[key] for key in expected])
    lines = [{**key._asdict(), "scores": scores[key]} for key in expected]
    write_text(folder.path / "scores.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return {
        method: Rows(
            [[Scored(samples[k], timings[k], scores[k]) for k in keys] for keys in grouped]
        )
        for method, grouped in groups.items()
    }


def _scores(benchmark: Benchmark, samples: Sequence[Sample]) -> Scores:
    """By sample, the scores of all scorers, named `role.label`."""
    found: Scores = {sample.key: {} for sample in samples}
    exchanges = _exchanges(benchmark, samples)
    for role, scorer in benchmark.scorers.items():
        with progress(len(samples), f"{benchmark.name}: {scorer.record.name}") as advance:
            columns = score_all(scorer, exchanges, advance)
        for label, values in columns.items():
            for sample, value in zip(samples, values, strict=True):
                found[sample.key][f"{role}.{label}"] = value
    return found


def _exchanges(benchmark: Benchmark, samples: Sequence[Sample]) -> list[Exchange]:
    prompts = {prompt.name: prompt for prompt in benchmark.setting.prompts}
    return [
        Exchange(
            name=str(sample.key),
            prompt=prompts[sample.prompt].text,
            response=sample.text,
            prompt_tokens=prompts[sample.prompt].tokens,
            response_tokens=tuple(sample.tokens),
        )
        for sample in samples
    ]
