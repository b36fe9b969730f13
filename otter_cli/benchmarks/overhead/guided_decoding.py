"""Guided decoding: time per token, passes and caches of each method, with its floor beside it.

A floor is the least time a method can take over plain decoding: steps of bare models, measured in
turns with the methods, and the insertion's counted work."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from otter_cli.benchmarks.metrics.estimates import Estimate, estimate
from otter_cli.benchmarks.overhead import prefill_decode
from otter_cli.benchmarks.overhead.measured_models import (
    OverheadRun,
    random_language_model,
    random_reward_model,
)
from otter_cli.benchmarks.overhead.measuring import (
    CountedWork,
    PassShape,
    StepTimes,
    TimedGeneration,
    base_work,
    inserted_work,
    interleaved,
)
from otter_cli.benchmarks.overhead.prefill_decode import random_tokens
from otter_cli.benchmarks.overhead.result import MeasuredGroup, measured_lines, median_ratio
from otter_cli.core.intervals import median
from otter_cli.graft.plan import Plan

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from otter_cli.decoding.results import Generation
    from otter_cli.decoding.sampling import Sampling


_STEP_REPEATS = 5


@dataclass(frozen=True)
class BareStep:
    """`width` tokens in `copies` of each row, of the base or of a separate reward `model`."""

    width: int
    model: PreTrainedModel | None = None
    copies: int = 1

    def of(self, bench: OverheadRun, batch: int) -> Callable[[], Tensor]:
        """The same step, to be run again and again, over the run's context."""
        stock, rows = bench.subject.stock, self.copies * batch
        one = (
            prefill_decode.base_contestant(stock)
            if self.model is None
            else prefill_decode.reward_model_contestant(self.model)
        )
        prompt = random_tokens(bench.subject, rows, bench.settings.context, "prompt")
        return prefill_decode.repeated_step(
            one, prompt, random_tokens(bench.subject, rows, self.width, "step")
        )

    def timed(self, bench: OverheadRun, batch: int) -> Callable[[], TimedGeneration]:
        """The median of a few of them in a row."""
        step = self.of(bench, batch)

        def timed() -> TimedGeneration:
            seconds = []
            for _ in range(_STEP_REPEATS):
                bench.synchronise()
                started = time.perf_counter()
                step()
                bench.synchronise()
                seconds.append(time.perf_counter() - started)
            return TimedGeneration(float(np.median(seconds)))

        return timed


@dataclass(frozen=True)
class DecodingFloors:
    """Seconds by round: `plain` decoding's for a token of each of `batch` rows, and each step's."""

    bench: OverheadRun
    batch: int
    plain: np.ndarray
    steps: Mapping[BareStep, np.ndarray]

    def step(self, width: int, model: PreTrainedModel | None = None, copies: int = 1) -> np.ndarray:
        """Over plain decoding's, [rounds]."""
        return self.steps[BareStep(width, model, copies)] / self.plain

    def inserted(self, plan: Plan, *, products: int = 0, tokens: int = 1) -> float:
        """By work: a pass with the insertion, which runs once for `tokens`, and `products` more
        over the vocabulary."""
        shape, size = self.bench.subject.shape, self.bench.subject.stock.dtype.itemsize
        one = PassShape(self.batch, 1, self.bench.settings.context, size)
        base = base_work(shape, self.bench.subject.layer_weights, one)
        head = products * shape.vocab * shape.hidden
        many = inserted_work(plan, PassShape(self.batch, tokens, self.bench.settings.context, size))
        inserted = CountedWork(many.flops / tokens, many.bytes / tokens)
        whole = base + inserted + CountedWork(2 * head * self.batch, head * size)
        return self.bench.rates.seconds(whole) / self.bench.rates.seconds(base)


CANDIDATE_COUNTS = (5, 10, 20)
PLAIN_DECODING, INSERTION_READ, ARGS_10 = "plain", "plain, insertion read", "ARGS k = 10"
INSERTION_READ_LATER = "plain, insertion read later"
_CANDIDATES = 10
_DRAWS = 8


TimedCall = Callable[[], TimedGeneration]


def new_tokens(batch: int) -> int:
    """How many are timed: with many rows a token takes several times as long."""
    return 16 if batch == 1 else 8


@dataclass(frozen=True)
class TimedMethod:
    """`floor`: of its time over plain decoding's."""

    call: TimedCall
    floor: Callable[[DecodingFloors], np.ndarray | float] | None = None


class TimedMethods:
    """Those of a bench. Models are made once, at random, of the base's own shape."""

    def __init__(self, bench: OverheadRun) -> None:
        subject = bench.with_signals("reward", "action-reward")
        self.model, self.plan = subject.graft, subject.plans[0]
        self.reward_model = random_reward_model(bench.subject.stock)
        self.expert, self.anti_expert = (
            random_language_model(bench.subject.stock) for _ in range(2)
        )

    @property
    def steps(self) -> list[BareStep]:
        """What the floors are made of."""
        own = [BareStep(width) for width in (1, *CANDIDATE_COUNTS)]
        return [*own, BareStep(_CANDIDATES, self.reward_model), BareStep(1, copies=_DRAWS)]

    def of(self, prompts: list[list[int]]) -> dict[str, TimedMethod]:
        """By name; all of them greedy, but for the best of several draws."""
        from otter_cli.decoding.generate import generate
        from otter_cli.decoding.sampling import Sampling

        greedy = Sampling(new_tokens(len(prompts)), ignore_eos=True)

        def call(**options: Any) -> TimedCall:
            def timed() -> TimedGeneration:
                seen: list[float] = []
                rows = generate(
                    self.model,
                    prompts,
                    greedy,
                    on_token=lambda row, token: seen.append(time.perf_counter()),
                    **options,
                )
                # From a token to the next: who feeds the last one too is not charged for it.
                return TimedGeneration(float(np.median(np.diff(seen[:: len(prompts)]))), rows[0])

            return timed

        return {
            PLAIN_DECODING: TimedMethod(call()),
            INSERTION_READ: TimedMethod(call(signals=["reward"], read_every=1), self._read),
            INSERTION_READ_LATER: TimedMethod(self._later(prompts, greedy), self._read_later),
            **self._by_insertion(call),
            **self._by_others(call),
            **self._best_of(prompts),
        }

    def _later(self, prompts: list[list[int]], sampling: Sampling) -> TimedCall:
        """Signals of all tokens at once, after the last: the mean time of a token."""
        from otter_cli.decoding.generate import generate

        def timed() -> TimedGeneration:
            every = sampling.max_new_tokens
            first, *_ = generate(
                self.model, prompts, sampling, signals=["reward"], read_every=every
            )
            return TimedGeneration(first.counters.seconds / (first.counters.base_passes - 1), first)

        return timed

    def _by_insertion(self, call: Callable[..., TimedCall]) -> dict[str, TimedMethod]:
        from otter_cli.decoding.guides.signal_guides import SignalGuide, VocabularyGuide

        def value(k: int) -> TimedMethod:
            return TimedMethod(
                call(guide=SignalGuide("reward", 1.0, k)),
                lambda floors: 1 + floors.step(k) - floors.step(1),
            )

        candidates = VocabularyGuide("action-reward", 1.0, _CANDIDATES)
        everything = VocabularyGuide("action-reward", 1.0, 0)
        return {
            **{f"V-style k = {k}": value(k) for k in CANDIDATE_COUNTS},
            f"Q-style k = {_CANDIDATES}": TimedMethod(call(guide=candidates), self._read),
            "Q-style, all tokens": TimedMethod(
                call(guide=everything), lambda floors: floors.inserted(self.plan, products=1)
            ),
        }

    def _by_others(self, call: Callable[..., TimedCall]) -> dict[str, TimedMethod]:
        from otter_cli.decoding.guides.external_models import (
            ArgsGuide,
            DExpertsGuide,
            GenArmGuide,
            RadGuide,
        )

        experts = DExpertsGuide(self.expert, self.anti_expert, 1.0)

        def rewards(floors: DecodingFloors) -> np.ndarray:
            return 1 + floors.step(_CANDIDATES, self.reward_model)

        return {
            ARGS_10: TimedMethod(
                call(guide=ArgsGuide(self.reward_model, 1.0, _CANDIDATES)), rewards
            ),
            f"RAD k = {_CANDIDATES}": TimedMethod(
                call(guide=RadGuide(self.reward_model, 1.0, _CANDIDATES)), rewards
            ),
            "DExperts": TimedMethod(call(guide=experts), lambda floors: 1 + 2 * floors.step(1)),
            "GenARM": TimedMethod(
                call(guide=GenArmGuide(self.expert, 1.0)), lambda floors: 1 + floors.step(1)
            ),
        }

    def _best_of(self, prompts: list[list[int]]) -> dict[str, TimedMethod]:
        from otter_cli.decoding.best_of import BestOf, best_of
        from otter_cli.decoding.sampling import Sampling

        drawn = Sampling(new_tokens(len(prompts)), temperature=1.0, ignore_eos=True)

        def call(**judge: Any) -> TimedCall:
            def timed() -> TimedGeneration:
                (first, *_) = best_of(self.model, prompts, drawn, BestOf(_DRAWS, **judge))
                return TimedGeneration(
                    first.counters.seconds / (first.counters.base_passes - 1), first
                )

            return timed

        return {
            f"best of {_DRAWS} by the insertion": TimedMethod(
                call(signal="reward"),
                lambda floors: self._read(floors) * floors.step(1, copies=_DRAWS),
            ),
            f"best of {_DRAWS} by a reward model": TimedMethod(
                call(reward_model=self.reward_model), lambda floors: floors.step(1, copies=_DRAWS)
            ),
        }

    def _read(self, floors: DecodingFloors) -> float:
        return floors.inserted(self.plan)

    def _read_later(self, floors: DecodingFloors) -> float:
        return floors.inserted(self.plan, tokens=new_tokens(floors.batch))


BATCH_SIZES = (1, 8)
_FLOORS_NOTE = (
    "Floors. V-style: plain, and what a step of k tokens of the base takes more than a step of "
    "one. Q-style, and a signal that is only read: the insertion's bound by bytes and operations; "
    "read later: the same, of all tokens at once; Q-style of all tokens: with a product over the "
    "vocabulary. ARGS, RAD: plain, and a reward model's step of k tokens. DExperts, GenARM: plain, "
    "and steps of two models, or one. Best of n: a step of n rows."
)


def guided_decoding_groups(bench: OverheadRun) -> list[MeasuredGroup]:
    """One group for each batch size; methods take turns, some tokens each."""
    methods = TimedMethods(bench)
    return [_decoding_group(bench, batch, methods) for batch in BATCH_SIZES]


def _decoding_group(bench: OverheadRun, batch: int, made: TimedMethods) -> MeasuredGroup:
    context = bench.settings.context
    methods = made.of(random_tokens(bench.subject, batch, context, "decoding").tolist())
    calls = {name: method.call for name, method in methods.items()}
    times, steps, last = time_in_rounds(bench, calls, made.steps, batch)
    floors = DecodingFloors(bench, batch, times[PLAIN_DECODING], steps)
    least = {
        n: one.floor(floors) * np.ones_like(times[n]) for n, one in methods.items() if one.floor
    }
    how = (
        f"{new_tokens(batch)} tokens after {context}: the median time from a token to the next in "
        "each round, steps of the floors in turns with the methods; passes and caches are the "
        "batch's."
    )
    return MeasuredGroup(
        title=f"Decoding, batch {batch}",
        reference=PLAIN_DECODING,
        per="token",
        notes=[how, _FLOORS_NOTE],
        lines=measured_lines(
            times,
            PLAIN_DECODING,
            figures={
                name: _decoding_figures(one, times, least, name) for name, one in last.items()
            },
            floors={name: float(np.median(one)) for name, one in least.items()},
        ),
    )


def time_in_rounds(
    bench: OverheadRun, calls: Mapping[str, TimedCall], steps: Sequence[BareStep], batch: int
) -> tuple[StepTimes, dict[BareStep, np.ndarray], dict[str, Generation]]:
    """Seconds by round of each call, by its own clock, and of each step of `batch` rows; the calls'
    last generations. A warm-up round is left out."""
    import torch

    spent: dict[str, list[float]] = {}
    last: dict[str, Generation] = {}

    def seen(outputs: Mapping[str, TimedGeneration]) -> None:
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


def _decoding_figures(
    one: Generation, times: StepTimes, least: Mapping[str, np.ndarray], name: str
) -> dict[str, float | Estimate]:
    counters, tokens = one.counters, len(one.tokens)
    found: dict[str, float | Estimate] = {
        "base passes a token": counters.base_passes / tokens,
        "other passes a token": counters.external_passes / tokens,
        "cache, bytes": float(counters.cache_bytes),
    }
    if name in least:
        found["over its floor"] = median_ratio(
            times[name] / times[PLAIN_DECODING], least[name], f"{name} over its floor"
        )
    if name not in (PLAIN_DECODING, INSERTION_READ):
        found["over the insertion read"] = median_ratio(times[name], times[INSERTION_READ], name)
    if name not in (PLAIN_DECODING, ARGS_10):
        # METHOD, 5: the share that is saved of what the baseline adds.
        saved = 1 - (times[name] - times[PLAIN_DECODING]) / (times[ARGS_10] - times[PLAIN_DECODING])
        share = estimate(median(saved), len(saved), f"{name}, saved")
        found["of ARGS's extra saved, share"] = share
    return found
