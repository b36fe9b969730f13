"""Guided decoding: time per token, passes and caches of each method, with its floor beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from otter_cli.benchmarks.overhead.bench import Bench
from otter_cli.benchmarks.overhead.clock import Times, interleaved
from otter_cli.benchmarks.overhead.costs import random_tokens
from otter_cli.benchmarks.overhead.floors import Floors, step_seconds
from otter_cli.benchmarks.overhead.methods import (
    ARGS,
    NEW_TOKENS,
    PLAIN,
    READ,
    Call,
    Methods,
    Timed,
)
from otter_cli.benchmarks.overhead.result import Group, lines_of

if TYPE_CHECKING:
    from otter_cli.decoding import Generation

BATCHES = (1, 8)
_FLOORS = (
    "Floors. V-style: plain, and what a step of k tokens of the base takes more than a step of "
    "one. Q-style, and a signal that is only read: the insertion's bound by bytes and operations; "
    "of all tokens: with a product over the vocabulary. ARGS, RAD: plain, and a reward model's "
    "step of k tokens. DExperts, GenARM: plain, and steps of two models, or one. Best of n: a step "
    "of n rows."
)


def decoding(bench: Bench) -> list[Group]:
    """One group for each batch size; methods take turns, some tokens each."""
    methods = Methods(bench)
    return [_group(bench, batch, methods) for batch in BATCHES]


def _group(bench: Bench, batch: int, made: Methods) -> Group:
    context = bench.settings.context
    methods = made.of(random_tokens(bench.subject, batch, context, "decoding").tolist())
    calls = {name: method.call for name, method in methods.items()}
    times, last = rounds(bench, calls)
    plain = float(np.median(times[PLAIN]))
    floors = Floors(bench, batch, plain, step_seconds(bench, batch, made.steps))
    least = {name: one.floor(floors) for name, one in methods.items() if one.floor is not None}
    figures = {name: _figures(one, times, name) for name, one in last.items()}
    how = (
        f"{NEW_TOKENS} tokens after {context}, timed from the first to the last; passes and caches "
        "are the batch's."
    )
    return Group(
        title=f"Decoding, batch {batch}",
        reference=PLAIN,
        per="token",
        notes=[how, _FLOORS],
        lines=lines_of(times, PLAIN, figures=figures, floors=least),
    )


def rounds(bench: Bench, calls: Mapping[str, Call]) -> tuple[Times, dict[str, Generation]]:
    """Seconds of each call by round, by its own clock, and its last generation. A warm-up round is
    left out."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    last: dict[str, Generation] = {}

    def seen(outputs: Mapping[str, Timed]) -> None:
        for name, one in outputs.items():
            spent[name].append(one.seconds)
            last[name] = one.generation

    interleaved(calls, bench.rounds, synchronise=bench.synchronise, seen=seen, warm_up=1)
    return {name: np.array(each[1:]) for name, each in spent.items()}, last


def _figures(one: Generation, times: Times, name: str) -> dict[str, float]:
    counters, tokens = one.counters, len(one.tokens)
    found = {
        "base passes a token": counters.base_passes / tokens,
        "other passes a token": counters.external_passes / tokens,
        "cache, bytes": float(counters.cache_bytes),
    }
    if name not in (PLAIN, READ):
        found["over the insertion read"] = float(np.median(times[name] / times[READ]))
    if name not in (PLAIN, ARGS):
        # METHOD, 5: the share that is saved of what the baseline adds.
        saved = 1 - (times[name] - times[PLAIN]) / (times[ARGS] - times[PLAIN])
        found["of ARGS's extra saved, share"] = float(np.median(saved))
    return found
