"""A benchmark from start to result: generate, score, aggregate, write.

`run_benchmark` is the story. Every method answers every prompt, in turns. Samples on disk stay, so
a killed run loses at most the generation in flight. No figure is computed before all samples and
scores are there."""

import math
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from otter_cli.benchmarks.benchmark import Benchmark
from otter_cli.benchmarks.metrics.estimates import Estimate, estimate_all, estimate_differences
from otter_cli.benchmarks.metrics.measures import peak_cache_bytes
from otter_cli.benchmarks.prompts import BenchPrompt
from otter_cli.benchmarks.records import (
    PLAIN,
    RunData,
    Sample,
    SampleCounters,
    SampleKey,
    ScoredSample,
    Timing,
)
from otter_cli.benchmarks.results import (
    BenchmarkResult,
    Divergence,
    ExampleTexts,
    MethodMemory,
    MethodResult,
)
from otter_cli.benchmarks.runner.examples import example_texts
from otter_cli.benchmarks.runner.run_folder import RunFolder
from otter_cli.core.console import progress, say
from otter_cli.core.errors import OtterError
from otter_cli.core.formatting import seconds_text
from otter_cli.core.process import derive_seed, interruptible
from otter_cli.core.provenance import provenance
from otter_cli.scorers.scorer import Exchange, Scorer, score_all
from otter_cli.signals.finite import non_finite_error, non_finite_signals

if TYPE_CHECKING:
    from otter_cli.decoding.results import Generation


@dataclass(frozen=True)
class FinishedRun:
    """A run's folder and its result."""

    folder: Path
    result: BenchmarkResult


def run_benchmark(benchmark: Benchmark, out: Path | None = None) -> FinishedRun:
    """Run, or resume, in `out` or in runs/NAME-KEY. Raises OtterError."""
    import torch

    settings = benchmark.settings()
    path = out or Path("runs") / f"{benchmark.name}-{settings.key[:10]}"
    say(f"run folder: {path}")
    with RunFolder.opened(path, settings) as folder:
        folder.write_prompts(benchmark.setting.prompts)
        session = {**provenance(), "threads": torch.get_num_threads()}
        collect_samples(benchmark, folder, folder.add_session(session))
        data = score_run(benchmark, folder)
        divergences = {name: benchmark.divergences(name, data.rows) for name in benchmark.methods}
        methods = aggregate(type(benchmark), data, divergences)
        result = BenchmarkResult(
            benchmark=benchmark.name,
            key=settings.key,
            settings=settings,
            scorers=dict(data.scorers),
            methods=methods,
            fronts=benchmark.fronts(data),
            findings=benchmark.findings(methods),
            warnings=benchmark.warnings(),
            sessions=folder.sessions(),
            process_memory=_peak_memory(),
        )
        result.write(path)
        ExampleTexts(texts=list(example_texts(benchmark, data))).write(path)
    return FinishedRun(path, result)


class MethodCall(NamedTuple):
    """One call of one method. Several repeats of each prompt share a batch."""

    method: str
    prompts: Sequence[BenchPrompt]
    repeats: range

    def rows(self) -> list[tuple[SampleKey, BenchPrompt]]:
        return [
            (SampleKey(self.method, prompt.name, repeat), prompt)
            for prompt in self.prompts
            for repeat in self.repeats
        ]

    def keys(self) -> set[SampleKey]:
        return {key for key, _ in self.rows()}


def scheduled_calls(benchmark: Benchmark) -> Iterator[MethodCall]:
    """All calls, prompt by prompt: other load on the machine then slows every method alike. The
    method that goes first rotates, because the first call after a pause is slower."""
    names, setting = list(benchmark.methods), benchmark.setting
    starts = range(0, len(setting.prompts), setting.prompts_per_call)
    for number, first in enumerate(starts):
        prompts = setting.prompts[first : first + setting.prompts_per_call]
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            for start in range(0, setting.samples_per_prompt, setting.batch):
                stop = min(start + setting.batch, setting.samples_per_prompt)
                yield MethodCall(name, prompts, range(start, stop))


def collect_samples(benchmark: Benchmark, folder: RunFolder, session: int) -> None:
    """Generate the samples that the folder lacks. A call that a kill cut short is repeated as a
    whole, since its rows share a batch. Only its missing lines are added. Ctrl-C ends after a call:
    KeyboardInterrupt, once it is said what is there."""
    sampled, timed = folder.samples().keys(), folder.timings().keys()
    calls = [call for call in scheduled_calls(benchmark) if not sampled & timed >= call.keys()]
    _warm_up(benchmark, {call.method for call in calls})
    total = sum(len(call.rows()) for call in calls)
    so_far = _Pace()
    label = f"{benchmark.name}: samples"
    with (
        interruptible() as interrupted,
        progress(total, label, first=_FIRST_LINE, note=so_far.text) as advance,
    ):
        for call in calls:
            for sample, timing in _generate_samples(benchmark, call, session):
                if sample.key not in sampled:
                    folder.add(sample, timing)
                elif sample.key not in timed:
                    folder.add_timing(timing)
                so_far.add(sample, timing)
            advance(len(call.rows()))
            if interrupted() and so_far.samples < total:
                say(
                    f"interrupted: {so_far.samples} of {total} samples are new in {folder.path} "
                    f"({so_far.text()}); the same command goes on from there"
                )
                raise KeyboardInterrupt


_FIRST_LINE = 2.0  # seconds


class _Pace:
    """What the samples of this session show already: the time of a token, by method."""

    def __init__(self) -> None:
        self.samples = 0
        self._seconds: dict[str, float] = {}
        self._tokens: dict[str, int] = {}

    def add(self, sample: Sample, timing: Timing) -> None:
        self.samples += 1
        name = sample.method
        self._seconds[name] = self._seconds.get(name, 0.0) + timing.seconds
        self._tokens[name] = self._tokens.get(name, 0) + len(sample.tokens)

    def text(self) -> str:
        """Such as `a token takes so far: plain 31 ms, insertion 35 ms`."""
        times = [
            f"{name} {seconds_text(seconds / max(self._tokens[name], 1))}"
            for name, seconds in self._seconds.items()
        ]
        return f"a token takes so far: {', '.join(times)}" if times else ""


def _warm_up(benchmark: Benchmark, methods: set[str]) -> None:
    """A process's first call pays for lazy set-up, which is not a cost of the method."""
    sampling = replace(benchmark.setting.sampling, max_new_tokens=4)
    label = f"{benchmark.name}: first calls of {len(methods)} methods"
    with progress(len(methods), label, first=_FIRST_LINE) as advance:
        for name in sorted(methods):
            benchmark.methods[name].generate([list(benchmark.setting.prompts[0].tokens)], sampling)
            advance(1)


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
    # The rows of a batch share its time.
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
    counters = {name: getattr(generation.counters, name) for name in SampleCounters.model_fields}
    return Sample(
        **key._asdict(),
        seed=seed,
        text=response_text(tokenizer, prompt.tokens, generation.tokens),
        tokens=generation.tokens,
        logprobs=generation.logprobs,
        drawn=generation.drawn,
        signals=generation.signals,
        finish=generation.finish,
        counters=SampleCounters(**counters),
    )


def response_text(tokenizer: Any, prompt: Sequence[int], response: Sequence[int]) -> str:
    """The response as it continues the prompt: decoded alone, it may lose its first space."""
    before = tokenizer.decode(prompt, skip_special_tokens=True)
    whole = tokenizer.decode([*prompt, *response], skip_special_tokens=True)
    if whole.startswith(before):
        return str(whole[len(before) :])
    return str(tokenizer.decode(response, skip_special_tokens=True))


def score_run(benchmark: Benchmark, folder: RunFolder) -> RunData:
    """Every method's samples with their scores, which are written to scores.jsonl. Raises
    OtterError where a sample is missing or a scorer fails."""
    parameter_bytes = {name: m.parameter_bytes for name, m in benchmark.methods.items()}
    records = {role: scorer.record for role, scorer in benchmark.scorers.items()}
    data = folder.load(benchmark.settings(), parameter_bytes, records, scored=False)
    for role, scorer in benchmark.scorers.items():
        add_scores(data, role, scorer)
    folder.write_scores(data)
    return data


def add_scores(data: RunData, role: str, scorer: Scorer) -> None:
    """Score every row by `scorer`, as `role.label`. A scorer of that role is replaced."""
    prompts = {prompt.name: prompt for prompt in data.prompts}
    groups = (group for rows in data.rows.values() for group in rows.groups)
    rows = [row for group in groups for row in group]
    exchanges = [_exchange(prompts[row.sample.prompt], row) for row in rows]
    with progress(len(rows), f"scores of {scorer.record.name}", first=_FIRST_LINE) as advance:
        columns = score_all(scorer, exchanges, advance)
    for number, row in enumerate(rows):
        for name in [name for name in row.scores if name.startswith(f"{role}.")]:
            del row.scores[name]
        row.scores.update({f"{role}.{label}": v[number] for label, v in columns.items()})


def _exchange(prompt: BenchPrompt, row: ScoredSample) -> Exchange:
    return Exchange(
        name=str(row.sample.key),
        prompt=prompt.text,
        response=row.sample.text,
        prompt_tokens=prompt.tokens,
        response_tokens=tuple(row.sample.tokens),
        messages=prompt.messages,
    )


def aggregate(
    kind: type[Benchmark], data: RunData, divergences: Mapping[str, list[Divergence]]
) -> dict[str, MethodResult]:
    """The figures of every method. Raises OtterError where one is undefined or not finite."""
    plain, count = kind.measures(PLAIN, data), len(data.prompts)
    methods = {}
    for name, rows in data.rows.items():
        measures = kind.measures(name, data)
        methods[name] = MethodResult(
            label=data.methods[name].label,
            metrics=estimate_all(measures, count, f"of {name}"),
            against_plain=estimate_differences(measures, {} if name == PLAIN else plain, count),
            by_category={
                category: _category_estimates(kind, name, data.only(category))
                for category in data.categories
            },
            memory=MethodMemory(
                weights=data.parameter_bytes[name], caches=int(peak_cache_bytes(rows).max())
            ),
            divergences=divergences[name],
        )
    return methods


def _category_estimates(kind: type[Benchmark], name: str, data: RunData) -> dict[str, Estimate]:
    measures = kind.measures(name, data)
    main = {metric: measures[metric] for metric in kind.by_category if metric in measures}
    return estimate_all(
        main, len(data.prompts), f"of {name}, prompts of {data.prompts[0].category}"
    )


def _peak_memory() -> int:
    # macOS counts bytes here, Linux kilobytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
