"""A benchmark from start to result: generate, score, aggregate, write.

Every method answers every prompt, in turns. Samples on disk stay, so a killed run loses at most
the generation in flight. No figure is computed until all samples and scores are there."""

import math
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from otter_cli.benchmarks.benchmark import Benchmark
from otter_cli.benchmarks.metrics.estimates import (
    Estimate,
    Measures,
    estimate_all,
    estimate_differences,
)
from otter_cli.benchmarks.metrics.measures import peak_cache_bytes
from otter_cli.benchmarks.prompts import BenchPrompt
from otter_cli.benchmarks.records import (
    PLAIN,
    MethodRows,
    RunData,
    Sample,
    SampleCounters,
    SampleKey,
    SampleScores,
    ScoredSample,
    Timing,
)
from otter_cli.benchmarks.results import BenchmarkResult, Divergence, MethodMemory, MethodResult
from otter_cli.benchmarks.runner.run_folder import RunFolder
from otter_cli.core.console import progress, say
from otter_cli.core.errors import OtterError
from otter_cli.core.process import derive_seed
from otter_cli.core.provenance import provenance
from otter_cli.scorers.scorer import Exchange, Scorer, score_all
from otter_cli.signals.finite import non_finite_error, non_finite_signals

if TYPE_CHECKING:
    from otter_cli.decoding.results import Generation


class MethodCall(NamedTuple):
    """One call of one method: repeats of its prompts share a batch."""

    method: str
    prompts: Sequence[BenchPrompt]
    repeats: range

    def rows(self) -> list[tuple[SampleKey, BenchPrompt]]:
        return [
            (SampleKey(self.method, prompt.name, repeat), prompt)
            for prompt in self.prompts
            for repeat in self.repeats
        ]

    def keys(self) -> list[SampleKey]:
        return [key for key, _ in self.rows()]


def scheduled_calls(benchmark: Benchmark) -> Iterator[MethodCall]:
    """Prompt by prompt, so that a busy minute of the machine hits every method alike; who goes
    first rotates, since the first call after a pause is slower."""
    names, setting = list(benchmark.methods), benchmark.setting
    groups = range(0, len(setting.prompts), setting.together)
    for number, first in enumerate(groups):
        prompts = setting.prompts[first : first + setting.together]
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            for start in range(0, setting.repeats, setting.batch):
                stop = min(start + setting.batch, setting.repeats)
                yield MethodCall(name, prompts, range(start, stop))


def collect_samples(benchmark: Benchmark, folder: RunFolder, session: int) -> None:
    """Makes the samples that the folder lacks. A call cut short by a kill is made again whole,
    since its rows share a batch, and only its missing lines are added."""
    sampled, timed = folder.samples().keys(), folder.timings().keys()
    todo = [call for call in scheduled_calls(benchmark) if not sampled & timed >= set(call.keys())]
    _warm_up(benchmark, {call.method for call in todo})
    with progress(sum(len(call.rows()) for call in todo), f"{benchmark.name}: samples") as advance:
        for call in todo:
            for sample, timing in _generate_samples(benchmark, call, session):
                if sample.key not in sampled:
                    folder.add(sample, timing)
                elif sample.key not in timed:
                    folder.add_timing(timing)
            advance(len(call.rows()))


def _generate_samples(
    benchmark: Benchmark, call: MethodCall, session: int
) -> Iterator[tuple[Sample, Timing]]:
    seed = derive_seed(benchmark.setting.seed, call.prompts[0].name, call.repeats.start)
    rows = call.rows()
    prompts = [list(prompt.tokens) for _, prompt in rows]
    started = time.perf_counter()
    generations = benchmark.methods[call.method].generate(
        prompts, replace(benchmark.setting.sampling, seed=seed)
    )
    # Rows of one batch share its time.
    seconds = (time.perf_counter() - started) / len(prompts)
    for (key, prompt), generation in zip(rows, generations, strict=True):
        sample = _sample(key, prompt, seed, generation, benchmark.graft.tokenizer)
        yield sample, Timing(**key._asdict(), seconds=seconds, session=session)


def _sample(
    key: SampleKey, prompt: BenchPrompt, seed: int, generation: "Generation", tokenizer: Any
) -> Sample:
    for position, logprob in enumerate(generation.logprobs):
        if not math.isfinite(logprob):
            raise OtterError(
                f"{key}: the base gives token {position} the log-probability {logprob}",
                hint="no token is dropped from a perplexity: a guide chose what the base rules out",
            )
    if names := non_finite_signals(generation.signals):
        raise non_finite_error(f"{key}: signal {names[0]!r}")
    counters = generation.counters
    return Sample(
        **key._asdict(),
        seed=seed,
        text=response_text(tokenizer, prompt.tokens, generation.tokens),
        tokens=generation.tokens,
        logprobs=generation.logprobs,
        drawn=generation.drawn,
        signals=generation.signals,
        finish=generation.finish,
        counters=SampleCounters(
            base_passes=counters.base_passes,
            external_passes=counters.external_passes,
            tokens_fed=counters.tokens_fed,
            drafted=counters.drafted,
            accepted=counters.accepted,
            cache_bytes=counters.cache_bytes,
        ),
    )


def response_text(tokenizer: Any, prompt: Sequence[int], response: Sequence[int]) -> str:
    """The response as it continues the prompt: alone, some tokenizers drop its first space."""
    before = tokenizer.decode(prompt, skip_special_tokens=True)
    whole = tokenizer.decode([*prompt, *response], skip_special_tokens=True)
    if whole.startswith(before):
        return str(whole[len(before) :])
    return str(tokenizer.decode(response, skip_special_tokens=True))


def _warm_up(benchmark: Benchmark, methods: set[str]) -> None:
    """The first call of a process pays for lazy set-up, which is no method's own cost."""
    sampling = replace(benchmark.setting.sampling, max_new_tokens=4)
    for name in sorted(methods):
        benchmark.methods[name].generate([list(benchmark.setting.prompts[0].tokens)], sampling)


def scored_rows(benchmark: Benchmark, folder: RunFolder) -> dict[str, MethodRows]:
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
        method: MethodRows(
            [[ScoredSample(samples[k], timings[k], scores[k]) for k in keys] for keys in grouped]
        )
        for method, grouped in groups.items()
    }


def score_samples(
    scorers: Mapping[str, Scorer], prompts: Sequence[BenchPrompt], samples: Sequence[Sample]
) -> SampleScores:
    """By sample, the scores of all scorers, named `role.label`."""
    found: SampleScores = {sample.key: {} for sample in samples}
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


def aggregate(
    kind: type[Benchmark], name: str, label: str, drawn: RunData, divergences: list[Divergence]
) -> MethodResult:
    """The figures of method `name`. Raises OtterError where one is undefined or not finite."""
    measures = kind.measures(name, drawn)
    plain: Measures = {} if name == PLAIN else kind.measures(PLAIN, drawn)
    caches = int(peak_cache_bytes(drawn.rows[name]).max())
    return MethodResult(
        label=label,
        metrics=estimate_all(measures, len(drawn.prompts), f"of {name}"),
        against_plain=estimate_differences(measures, plain, len(drawn.prompts)),
        by_category={
            of: _category_estimates(kind, name, drawn.only(of)) for of in drawn.categories
        },
        memory=MethodMemory(weights=drawn.weights[name], caches=caches),
        divergences=divergences,
    )


def _category_estimates(kind: type[Benchmark], name: str, drawn: RunData) -> dict[str, Estimate]:
    measures = kind.measures(name, drawn)
    main = {metric: measures[metric] for metric in kind.by_category if metric in measures}
    return estimate_all(
        main, len(drawn.prompts), f"of {name}, prompts of {drawn.prompts[0].category}"
    )


@dataclass(frozen=True)
class FinishedRun:
    """A run's folder and its outcome."""

    folder: Path
    result: BenchmarkResult


def run_benchmark(benchmark: Benchmark, out: Path | None = None) -> FinishedRun:
    """Runs, or resumes, in `out` or in runs/NAME-KEY. Raises OtterError."""
    settings = benchmark.settings()
    path = out or Path("runs") / f"{benchmark.name}-{settings.key[:10]}"
    say(f"run folder: {path}")
    with RunFolder.opened(path, settings) as folder:
        folder.write_prompts(benchmark.setting.prompts)
        collect_samples(benchmark, folder, folder.add_session(_session()))
        rows = scored_rows(benchmark, folder)
        drawn = RunData(
            prompts=tuple(benchmark.setting.prompts),
            rows=rows,
            weights={name: method.weights for name, method in benchmark.methods.items()},
            methods=settings.methods,
            sampling=settings.sampling,
            scorers={role: scorer.record for role, scorer in benchmark.scorers.items()},
        )
        methods = {
            name: aggregate(
                type(benchmark), name, method.label, drawn, benchmark.divergences(name, rows)
            )
            for name, method in benchmark.methods.items()
        }
        result = BenchmarkResult(
            benchmark=benchmark.name,
            key=settings.key,
            settings=settings,
            scorers=dict(drawn.scorers),
            methods=methods,
            fronts=benchmark.fronts(drawn),
            findings=benchmark.findings(methods),
            warnings=benchmark.warnings(),
            sessions=folder.sessions(),
            process_memory=_peak_memory(),
        )
        folder.write_result(result)
    return FinishedRun(path, result)


def _session() -> dict[str, Any]:
    import torch

    return {**provenance(), "threads": torch.get_num_threads()}


def _peak_memory() -> int:
    # macOS counts bytes here, Linux kilobytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
