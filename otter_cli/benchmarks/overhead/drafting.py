"""Speculative decoding: what a pass with drafts costs, and how many tokens must come of it.

Drafts of random heads are not accepted, so the time of a pass is what carries over: times the
acceptance measured elsewhere, it is the speed-up.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from otter_cli.benchmarks.overhead.bench import Bench, signals_of
from otter_cli.benchmarks.overhead.clock import Timed
from otter_cli.benchmarks.overhead.costs import random_tokens
from otter_cli.benchmarks.overhead.decoding import rounds
from otter_cli.benchmarks.overhead.floors import Step
from otter_cli.benchmarks.overhead.methods import Call
from otter_cli.benchmarks.overhead.result import Group, lines_of
from otter_cli.benchmarks.overhead.subject import insert
from otter_cli.insertion import Plan, resolve

PLAIN = "plain"
_HEADS = 3
_NEW_TOKENS = 16


def drafting(bench: Bench) -> list[Group]:
    """A pass of each drafter over plain decoding's."""
    from otter_cli.decoding import FutureDrafter, PromptLookup, Sampling, generate

    subject, batch = bench.subject, bench.settings.batch
    prompts = random_tokens(subject, batch, bench.settings.context, "drafting").tolist()
    future = bench.with_signals(f"future:{_HEADS}").graft
    heads = resolve(subject.shape, hidden=0, signals=signals_of([f"future:{_HEADS},plain"]))
    medusa = insert(subject.name, subject.stock, Plan(heads, subject.shape)).graft
    sampling = Sampling(_NEW_TOKENS, ignore_eos=True)

    def call(model: Any, drafter: Any = None) -> Call:
        def timed() -> Timed:
            (first, *_) = generate(model, prompts, sampling, drafter=drafter)
            # The prefill is a pass of its own, and not in the seconds.
            return Timed(first.counters.seconds / max(1, first.counters.base_passes - 1), first)

        return timed

    calls = {
        PLAIN: call(future),
        f"insertion's {_HEADS} future tokens": call(future, FutureDrafter("future")),
        f"Medusa-1's {_HEADS} heads": call(medusa, FutureDrafter("future")),
        "prompt lookup of 3": call(future, PromptLookup(length=_HEADS)),
    }
    times, steps, last = rounds(bench, calls, (Step(1), Step(1 + _HEADS)), batch)
    one, many = steps.values()
    least = float(np.median(1 + (many - one) / times[PLAIN]))
    figures = {name: {"cache, bytes": float(one.counters.cache_bytes)} for name, one in
               last.items()}  # fmt: skip
    lines = lines_of(
        times,
        PLAIN,
        floors={name: least for name in calls if name != PLAIN},
        figures=figures,
    )
    note = (
        "The ratio is also the number of tokens a pass must give to pay. Floor: a step of "
        f"{1 + _HEADS} tokens of the base in place of one."
    )
    return [Group(title="Speculative", reference=PLAIN, per="pass", notes=[note], lines=lines)]
