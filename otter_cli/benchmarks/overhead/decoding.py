"""Guided decoding: time per token, passes and caches of each method, with its floor beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from otter_cli.benchmarks.overhead import passes
from otter_cli.benchmarks.overhead.bench import Bench
from otter_cli.benchmarks.overhead.classifier import separate
from otter_cli.benchmarks.overhead.clock import Times, interleaved
from otter_cli.benchmarks.overhead.costs import random_tokens
from otter_cli.benchmarks.overhead.result import Group, lines_of
from otter_cli.benchmarks.overhead.work import Pass, base_work, inserted_work

if TYPE_CHECKING:
    from otter_cli.decoding import Generation

PLAIN, READ, ARGS = "plain", "plain, insertion read", "ARGS k = 10"
CANDIDATES = (5, 10, 20)
BATCHES = (1, 8)
_NEW_TOKENS = 16
_OF = 8

Call = Callable[[], "list[Generation]"]


def decoding(bench: Bench) -> list[Group]:
    """One group for each batch size; methods take turns, some tokens each."""
    calls = _Calls(bench)
    return [_group(bench, batch, calls) for batch in BATCHES]


class _Calls:
    """The methods of a bench; models are made once."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.model = bench.with_signals("reward", "action-reward").graft
        self.reward_model = separate(bench.subject.stock)

    def of(self, batch: int) -> dict[str, Call]:
        from otter_cli.decoding import ArgsGuide, Sampling, SignalGuide, generate

        prompts = random_tokens(
            self.bench.subject, batch, self.bench.settings.context, "decoding"
        ).tolist()
        greedy = Sampling(_NEW_TOKENS, ignore_eos=True)
        sampled = Sampling(_NEW_TOKENS, temperature=1.0, ignore_eos=True)
        many = [prompt for prompt in prompts for _ in range(_OF)]

        def call(texts: list[list[int]] = prompts, how: Any = greedy, **options: Any) -> Call:
            return lambda: generate(self.model, texts, how, **options)

        return {
            PLAIN: call(),
            READ: call(signals=["reward"]),
            **{f"V-style k = {k}": call(guide=SignalGuide("reward", 1.0, k)) for k in CANDIDATES},
            ARGS: call(guide=ArgsGuide(self.reward_model, 1.0, 10)),
            f"best of {_OF} by the insertion": call(many, sampled, signals=["reward"]),
        }


def _group(bench: Bench, batch: int, calls: _Calls) -> Group:
    methods = calls.of(batch)
    times, last = rounds(bench, methods, lambda one: one.counters.seconds / len(one.tokens))
    figures = {name: _figures(one, times, name) for name, one in last.items()}
    lines = lines_of(times, PLAIN, figures=figures, floors=_floors(bench, batch, times))
    tokens, context = _NEW_TOKENS, bench.settings.context
    how = f"{tokens} tokens after {context}, prefill apart; passes and caches are the batch's."
    floor = (
        "Floor of V-style: plain, and what a step of k tokens of the base takes more than a step "
        "of one. Floor of a signal that is only read: the insertion's bound."
    )
    title = f"Decoding, batch {batch}"
    return Group(title=title, reference=PLAIN, per="token", notes=[how, floor], lines=lines)


def rounds(
    bench: Bench, calls: Mapping[str, Call], seconds: Callable[[Generation], float]
) -> tuple[Times, dict[str, Generation]]:
    """`seconds` of each call's first row by round, by the session's own clock, and its last
    generation. A batch's rows share their time; a warm-up round is left out."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    last: dict[str, Generation] = {}

    def seen(outputs: Mapping[str, Sequence[Generation]]) -> None:
        for name, rows in outputs.items():
            spent[name].append(seconds(rows[0]))
            last[name] = rows[0]

    interleaved(calls, bench.rounds, synchronise=bench.synchronise, seen=seen, warm_up=1)
    return {name: np.array(each[1:]) for name, each in spent.items()}, last


def step_seconds(bench: Bench, batch: int, widths: Sequence[int]) -> dict[int, float]:
    """The base's own steps of so many tokens a row, over the same context, in turns."""
    import torch

    stock = passes.stock_base(bench.subject.stock)
    prompt = random_tokens(bench.subject, batch, bench.settings.context, "prompt")
    with torch.no_grad():
        steps = {
            str(width): passes.again(
                stock, prompt, random_tokens(bench.subject, batch, width, "step")
            )
            for width in widths
        }
        times = interleaved(steps, bench.settings.repeats, synchronise=bench.synchronise)
    return {int(width): float(np.median(seconds)) for width, seconds in times.items()}


def _floors(bench: Bench, batch: int, times: Times) -> dict[str, float]:
    step = step_seconds(bench, batch, (1, *CANDIDATES))
    plain = float(np.median(times[PLAIN]))
    size = bench.subject.stock.dtype.itemsize
    one = Pass(batch, 1, bench.settings.context + _NEW_TOKENS // 2, size)
    base = base_work(bench.subject.shape, bench.subject.layer_weights, one)
    both = base + inserted_work(bench.subject.plans[0], one)
    read = bench.rates.seconds(both) / bench.rates.seconds(base)
    return {READ: read} | {f"V-style k = {k}": 1 + (step[k] - step[1]) / plain for k in CANDIDATES}


def _figures(one: Generation, times: Times, name: str) -> dict[str, float]:
    counters, tokens = one.counters, len(one.tokens)
    found = {
        "base passes a token": counters.base_passes / tokens,
        "other passes a token": counters.external_passes / tokens,
        "cache, bytes": float(counters.cache_bytes),
    }
    if name not in (PLAIN, ARGS):
        # METHOD, 5: the share that is saved of what the baseline adds.
        saved = 1 - (times[name] - times[PLAIN]) / (times[ARGS] - times[PLAIN])
        found["of ARGS's extra saved, share"] = float(np.median(saved))
    return found
