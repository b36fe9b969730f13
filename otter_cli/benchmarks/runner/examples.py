"""Texts of a run for its report: the first prompts, each token with its signal."""

from collections.abc import Iterator
from typing import Any

from otter_cli.benchmarks.benchmark import Benchmark
from otter_cli.benchmarks.records import PLAIN, STRENGTH_MARK, RunData, Sample
from otter_cli.benchmarks.results import ExampleText

_PROMPTS = 3


def example_texts(benchmark: Benchmark, data: RunData) -> Iterator[ExampleText]:
    """The first text of plain decoding and of each method that reads a signal, on the first
    prompts. Nothing where no method reads one."""
    from otter_cli.decoding.results import token_texts

    tokenizer = benchmark.graft.tokenizer
    shown = [name for name in data.rows if STRENGTH_MARK not in name]
    for number, prompt in enumerate(benchmark.setting.prompts[:_PROMPTS]):
        samples = {name: data.rows[name].groups[number][0].sample for name in shown}
        signals = {name: signal for name, s in samples.items() if (signal := _single_signal(s))}
        if not signals:
            return
        for name in dict.fromkeys([PLAIN, *signals]):
            sample = samples[name]
            signal = signals.get(name)
            values: Any = sample.signals[signal] if signal else [None] * len(sample.tokens)
            yield ExampleText(
                label=benchmark.methods[name].record.label,
                signal=signal or next(iter(signals.values())),
                prompt=str(tokenizer.decode(prompt.tokens, skip_special_tokens=True)),
                tokens=token_texts(tokenizer, list(prompt.tokens), list(sample.tokens)),
                values=list(values),
            )


def _single_signal(sample: Sample) -> str | None:
    """The first signal with one number for each token."""
    for name, values in sample.signals.items():
        if len(values) == len(sample.tokens) > 0 and isinstance(values[0], float):
            return name
    return None
