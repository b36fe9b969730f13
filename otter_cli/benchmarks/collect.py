"""Samples first: every method answers every prompt, side by side, and what is there stays."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from otter_cli.benchmarks.benchmark import Benchmark
from otter_cli.benchmarks.prompts import BenchPrompt
from otter_cli.benchmarks.records import Counters, Sample, SampleKey, Timing
from otter_cli.benchmarks.run_folder import RunFolder
from otter_cli.core.console import progress
from otter_cli.core.errors import OtterError
from otter_cli.core.seeds import derive_seed
from otter_cli.signals.finite import broken, not_finite

if TYPE_CHECKING:
    from otter_cli.decoding import Generation


class Call(NamedTuple):
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


def calls(benchmark: Benchmark) -> Iterator[Call]:
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
                yield Call(name, prompts, range(start, stop))


def collect(benchmark: Benchmark, folder: RunFolder, session: int) -> None:
    """Makes the samples that the folder lacks. A call cut short by a kill is made again whole,
    since its rows share a batch, and only its missing lines are added."""
    sampled, timed = folder.samples().keys(), folder.timings().keys()
    todo = [call for call in calls(benchmark) if not sampled & timed >= set(call.keys())]
    _warm_up(benchmark, {call.method for call in todo})
    with progress(sum(len(call.rows()) for call in todo), f"{benchmark.name}: samples") as advance:
        for call in todo:
            for sample, timing in _made(benchmark, call, session):
                if sample.key not in sampled:
                    folder.add(sample, timing)
                elif sample.key not in timed:
                    folder.add_timing(timing)
            advance(len(call.rows()))


def _made(benchmark: Benchmark, call: Call, session: int) -> Iterator[tuple[Sample, Timing]]:
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
    if names := broken(generation.signals):
        raise not_finite(f"{key}: signal {names[0]!r}")
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
        counters=Counters(
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
