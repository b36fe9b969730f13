"""Guided decoding: time per token, passes and caches of each method, with its floor beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from otter_cli.benchmarks.estimates import Estimate, estimate
from otter_cli.benchmarks.overhead.bench import Bench
from otter_cli.benchmarks.overhead.clock import Timed, Times, interleaved
from otter_cli.benchmarks.overhead.costs import random_tokens
from otter_cli.benchmarks.overhead.floors import Floors, Step
from otter_cli.benchmarks.overhead.methods import (
    ARGS,
    PLAIN,
    READ,
    Call,
    Methods,
    new_tokens,
)
from otter_cli.benchmarks.overhead.result import Group, lines_of, median_ratio
from otter_cli.core.intervals import median

if TYPE_CHECKING:
    from otter_cli.decoding import Generation

BATCHES = (1, 8)
_FLOORS = (
    "Floors. V-style: plain, and what a step of k tokens of the base takes more than a step of "
    "one. Q-style, and a signal that is only read: the insertion's bound by bytes and operations; "
    "read later: the same, of all tokens at once; Q-style of all tokens: with a product over the "
    "vocabulary. ARGS, RAD: plain, and a reward model's step of k tokens. DExperts, GenARM: plain, "
    "and steps of two models, or one. Best of n: a step of n rows."
)


def decoding(bench: Bench) -> list[Group]:
    """One group for each batch size; methods take turns, some tokens each."""
    methods = Methods(bench)
    return [_group(bench, batch, methods) for batch in BATCHES]


def _group(bench: Bench, batch: int, made: Methods) -> Group:
    context = bench.settings.context
    methods = made.of(random_tokens(bench.subject, batch, context, "decoding").tolist())
    calls = {name: method.call for name, method in methods.items()}
    times, steps, last = rounds(bench, calls, made.steps, batch)
    floors = Floors(bench, batch, times[PLAIN], steps)
    least = {
        n: one.floor(floors) * np.ones_like(times[n]) for n, one in methods.items() if one.floor
    }
    how = (
        f"{new_tokens(batch)} tokens after {context}: the median time from a token to the next in "
        "each round, steps of the floors in turns with the methods; passes and caches are the "
        "batch's."
    )
    return Group(
        title=f"Decoding, batch {batch}",
        reference=PLAIN,
        per="token",
        notes=[how, _FLOORS],
        lines=lines_of(
            times,
            PLAIN,
            figures={name: _figures(one, times, least, name) for name, one in last.items()},
            floors={name: float(np.median(one)) for name, one in least.items()},
        ),
    )


def rounds(
    bench: Bench, calls: Mapping[str, Call], steps: Sequence[Step], batch: int
) -> tuple[Times, dict[Step, np.ndarray], dict[str, Generation]]:
    """Seconds by round of each call, by its own clock, and of each step of `batch` rows; the calls'
    last generations. A warm-up round is left out."""
    import torch

    spent: dict[str, list[float]] = {}
    last: dict[str, Generation] = {}

    def seen(outputs: Mapping[str, Timed]) -> None:
        for name, one in outputs.items():
            spent.setdefault(name, []).append(one.seconds)
            if one.generation is not None:
                last[name] = one.generation

    with torch.no_grad():
        floors = {f"step {number}": one.timed(bench, batch) for number, one in enumerate(steps)}
        turns = {**calls, **floors}
        interleaved(turns, bench.rounds, synchronise=bench.synchronise, seen=seen, warm_up=1)
    times = {name: np.array(spent[name][1:]) for name in turns}
    own = dict(zip(steps, (times.pop(name) for name in floors), strict=True))
    return times, own, last


def _figures(
    one: Generation, times: Times, least: Mapping[str, np.ndarray], name: str
) -> dict[str, float | Estimate]:
    counters, tokens = one.counters, len(one.tokens)
    found: dict[str, float | Estimate] = {
        "base passes a token": counters.base_passes / tokens,
        "other passes a token": counters.external_passes / tokens,
        "cache, bytes": float(counters.cache_bytes),
    }
    if name in least:
        found["over its floor"] = median_ratio(
            times[name] / times[PLAIN], least[name], f"{name} over its floor"
        )
    if name not in (PLAIN, READ):
        found["over the insertion read"] = median_ratio(times[name], times[READ], name)
    if name not in (PLAIN, ARGS):
        # METHOD, 5: the share that is saved of what the baseline adds.
        saved = 1 - (times[name] - times[PLAIN]) / (times[ARGS] - times[PLAIN])
        share = estimate(median(saved), len(saved), f"{name}, saved")
        found["of ARGS's extra saved, share"] = share
    return found
