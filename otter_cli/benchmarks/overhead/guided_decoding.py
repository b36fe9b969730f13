"""Guided decoding: time per token, passes and caches of each method, beside its floor.

A floor is the least time of a method over plain decoding's. It consists of steps of bare models,
measured in turns with the methods, and of the insertion's counted work (docs/method.md, Costs)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from otter_cli.benchmarks.metrics.estimates import Estimate, estimate
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
    inserted_work,
    interleaved,
)
from otter_cli.benchmarks.overhead.prefill_decode import (
    base_contestant,
    random_tokens,
    repeated_step,
    reward_model_contestant,
)
from otter_cli.benchmarks.overhead.result import MeasuredGroup, measured_group, median_ratio
from otter_cli.core.intervals import median
from otter_cli.graft.plan import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from otter_cli.decoding.results import Generation


BATCH_SIZES = (1, 8)
CANDIDATE_COUNTS = (5, 10, 20)
PLAIN_DECODING, INSERTION_READ, ARGS_10 = "plain", "plain, insertion read", "ARGS k = 10"
INSERTION_READ_LATER = "plain, insertion read later"
_CANDIDATES = 10
VALUE_10, ACTION_VALUES_10 = f"V-style k = {_CANDIDATES}", f"Q-style k = {_CANDIDATES}"
GUIDED_BATCH_SIZES = (1, 16)
GUIDED_METHODS = (PLAIN_DECODING, INSERTION_READ, ACTION_VALUES_10, VALUE_10, ARGS_10)
_DRAWS = 8
_STEP_REPEATS = 5

TimedCall = Callable[[], TimedGeneration]


@dataclass(frozen=True)
class BareStep:
    """`width` tokens in `copies` of each row, of the base or of a separate reward `model`."""

    width: int
    model: PreTrainedModel | None = None
    copies: int = 1

    def timed(self, run: OverheadRun, batch: int) -> TimedCall:
        """The median of a few of these steps in a row, after the run's context."""
        rows = self.copies * batch
        contestant = (
            base_contestant(run.models.stock)
            if self.model is None
            else reward_model_contestant(self.model)
        )
        prompt = random_tokens(run.models, rows, run.settings.context, "prompt")
        tokens = random_tokens(run.models, rows, self.width, "step")
        step = repeated_step(contestant, prompt, tokens)

        def timed() -> TimedGeneration:
            seconds = []
            for _ in range(_STEP_REPEATS):
                run.synchronise()
                started = time.perf_counter()
                step()
                run.synchronise()
                seconds.append(time.perf_counter() - started)
            return TimedGeneration(float(np.median(seconds)))

        return timed


@dataclass(frozen=True)
class DecodingFloors:
    """Seconds by round, [rounds]: `plain` decoding's for a token of each of `batch` rows, and of
    each bare step."""

    run: OverheadRun
    batch: int
    plain: np.ndarray
    steps: Mapping[BareStep, np.ndarray]

    def step(self, width: int, model: PreTrainedModel | None = None, copies: int = 1) -> np.ndarray:
        """The time of a bare step over plain decoding's, [rounds]."""
        return self.steps[BareStep(width, model, copies)] / self.plain

    def inserted(self, plan: Plan, *, products: int = 0, tokens: int = 1) -> float:
        """The bound of a pass with the insertion over the base's pass, by counted work.

        The insertion runs once for `tokens`, with `products` more over the vocabulary.
        """
        models, rates = self.run.models, self.run.rates
        size, context = models.stock.dtype.itemsize, self.run.settings.context
        step = PassShape(self.batch, 1, context, size)
        base = models.base_work(step)
        for_all = inserted_work(plan, PassShape(self.batch, tokens, context, size))
        inserted = CountedWork(for_all.flops / tokens, for_all.bytes / tokens)
        head = products * models.shape.vocab * models.shape.hidden
        whole = base + inserted + CountedWork(2 * head * self.batch, head * size)
        return rates.seconds(whole) / rates.seconds(base)


def new_tokens(batch: int) -> int:
    """How many tokens are timed. With many rows, a token takes several times as long."""
    return 16 if batch == 1 else 8


@dataclass(frozen=True)
class TimedMethod:
    """`floor`: the least time over plain decoding's, a number or [rounds]."""

    call: TimedCall
    floor: Callable[[DecodingFloors], np.ndarray | float] | None = None


class TimedMethods:
    """The methods of a run, or those of `names`. Other models have random weights and the base's
    own shape."""

    def __init__(self, run: OverheadRun, names: Sequence[str] | None = None) -> None:
        self.names = names
        graft = run.with_signals("reward", "action-reward")
        stock = run.models.stock
        self.model, self.plan = graft.graft, graft.plans[0]
        self.reward_model = random_reward_model(stock)
        self.expert, self.anti_expert = random_language_model(stock), random_language_model(stock)

    @property
    def steps(self) -> list[BareStep]:
        """The steps of the floors."""
        one, reward_model = BareStep(1), BareStep(_CANDIDATES, self.reward_model)
        if self.names is not None:
            return [one, BareStep(_CANDIDATES), reward_model]
        own = [BareStep(width) for width in CANDIDATE_COUNTS]
        return [one, *own, reward_model, BareStep(1, copies=_DRAWS)]

    def of(self, prompts: list[list[int]]) -> dict[str, TimedMethod]:
        """By name. All of them are greedy, except best-of-n, which samples."""
        every = self._all(prompts)
        return every if self.names is None else {name: every[name] for name in self.names}

    def _all(self, prompts: list[list[int]]) -> dict[str, TimedMethod]:
        from otter_cli.decoding.best_of import BestOf, best_of
        from otter_cli.decoding.generate import generate
        from otter_cli.decoding.guides.external_models import (
            ArgsGuide,
            DExpertsGuide,
            GenArmGuide,
            RadGuide,
        )
        from otter_cli.decoding.guides.signal_guides import SignalGuide, VocabularyGuide
        from otter_cli.decoding.sampling import Sampling

        batch = len(prompts)
        greedy = Sampling(new_tokens(batch), ignore_eos=True)
        sampled = Sampling(new_tokens(batch), temperature=1.0, ignore_eos=True)

        def by_token(**options: Any) -> TimedCall:
            """The median time from a token to the next: a pass after the last is not counted."""

            def timed() -> TimedGeneration:
                times: list[float] = []

                def on_token(row: int, token: Any) -> None:
                    times.append(time.perf_counter())

                first, *_ = generate(self.model, prompts, greedy, on_token=on_token, **options)
                return TimedGeneration(float(np.median(np.diff(times[::batch]))), first)

            return timed

        def read_later() -> TimedGeneration:
            """The signals of all tokens are read at once, after the last token."""
            every = greedy.max_new_tokens
            first, *_ = generate(self.model, prompts, greedy, signals=["reward"], read_every=every)
            return TimedGeneration.per_pass(first)

        def best_of_draws(**judge: Any) -> TimedCall:
            def timed() -> TimedGeneration:
                first, *_ = best_of(self.model, prompts, sampled, BestOf(_DRAWS, **judge))
                return TimedGeneration.per_pass(first)

            return timed

        def by_value(k: int) -> TimedMethod:
            call = by_token(guide=SignalGuide("reward", 1.0, k))
            return TimedMethod(call, lambda floors: 1 + floors.step(k) - floors.step(1))

        def reward_step(floors: DecodingFloors) -> np.ndarray:
            return 1 + floors.step(_CANDIDATES, self.reward_model)

        def draws(floors: DecodingFloors) -> np.ndarray:
            return floors.step(1, copies=_DRAWS)

        k, reward_model = _CANDIDATES, self.reward_model
        experts = DExpertsGuide(self.expert, self.anti_expert, 1.0)
        return {
            PLAIN_DECODING: TimedMethod(by_token()),
            INSERTION_READ: TimedMethod(by_token(signals=["reward"], read_every=1), self._read),
            INSERTION_READ_LATER: TimedMethod(
                read_later, lambda floors: floors.inserted(self.plan, tokens=new_tokens(batch))
            ),
            **{f"V-style k = {count}": by_value(count) for count in CANDIDATE_COUNTS},
            ACTION_VALUES_10: TimedMethod(
                by_token(guide=VocabularyGuide("action-reward", 1.0, k)), self._read
            ),
            "Q-style, all tokens": TimedMethod(
                by_token(guide=VocabularyGuide("action-reward", 1.0, 0)),
                lambda floors: floors.inserted(self.plan, products=1),
            ),
            ARGS_10: TimedMethod(by_token(guide=ArgsGuide(reward_model, 1.0, k)), reward_step),
            f"RAD k = {k}": TimedMethod(
                by_token(guide=RadGuide(reward_model, 1.0, k)), reward_step
            ),
            "DExperts": TimedMethod(by_token(guide=experts), lambda floors: 1 + 2 * floors.step(1)),
            "GenARM": TimedMethod(
                by_token(guide=GenArmGuide(self.expert, 1.0)), lambda floors: 1 + floors.step(1)
            ),
            f"best of {_DRAWS} by the insertion": TimedMethod(
                best_of_draws(signal="reward"), lambda floors: self._read(floors) * draws(floors)
            ),
            f"best of {_DRAWS} by a reward model": TimedMethod(
                best_of_draws(reward_model=reward_model), draws
            ),
        }

    def _read(self, floors: DecodingFloors) -> float:
        return floors.inserted(self.plan)


_FLOORS_NOTE = (
    "Floors, over plain decoding. V-style: plus a step of k tokens of the base, minus a step of "
    "one. Q-style, and a signal that is only read: the insertion's bound by bytes and operations; "
    "read later: the same, for all tokens at once; Q-style of all tokens: plus a product over the "
    "vocabulary. ARGS, RAD: plus a reward model's step of k tokens. DExperts: plus steps of two "
    "models; GenARM: plus a step of one. Best of n: a step of n rows."
)


def guided_decoding_groups(run: OverheadRun) -> Iterator[MeasuredGroup]:
    """One group for each batch size, a phase each. The methods take turns, some tokens each."""
    yield from _groups(run, TimedMethods(run), "Decoding", BATCH_SIZES)


def guided_cost_groups(run: OverheadRun) -> Iterator[MeasuredGroup]:
    """The short table of guidance: plain, Q-style, V-style, and ARGS with a second model."""
    yield from _groups(run, TimedMethods(run, GUIDED_METHODS), "Guided", GUIDED_BATCH_SIZES)


def _groups(
    run: OverheadRun, methods: TimedMethods, title: str, batches: Sequence[int]
) -> Iterator[MeasuredGroup]:
    for batch in batches:
        phase = run.pace.phase(run.settings.seconds)
        yield _decoding_group(replace(run, pace=phase), batch, methods, title)


def _decoding_group(
    run: OverheadRun, batch: int, all_methods: TimedMethods, title: str
) -> MeasuredGroup:
    context = run.settings.context
    methods = all_methods.of(random_tokens(run.models, batch, context, "decoding").tolist())
    calls = {name: method.call for name, method in methods.items()}
    times, steps, generations = time_in_rounds(
        run, calls, all_methods.steps, batch, f"decoding, batch {batch}"
    )
    floors = DecodingFloors(run, batch, times[PLAIN_DECODING], steps)
    floor_ratios = {
        name: method.floor(floors) * np.ones_like(times[name])
        for name, method in methods.items()
        if method.floor
    }
    how = (
        f"{new_tokens(batch)} tokens after {context}: the median time from a token to the next in "
        "each round. The steps of the floors take turns with the methods. Passes and caches are "
        "the batch's."
    )
    return measured_group(
        f"{title}, batch {batch}",
        times,
        reference=PLAIN_DECODING,
        per="token",
        notes=[how, _FLOORS_NOTE],
        floors={name: float(np.median(ratios)) for name, ratios in floor_ratios.items()},
        figures={
            name: _decoding_figures(generation, times, floor_ratios.get(name), name)
            for name, generation in generations.items()
        },
    )


def time_in_rounds(
    run: OverheadRun,
    calls: Mapping[str, TimedCall],
    steps: Sequence[BareStep],
    batch: int,
    label: str,
) -> tuple[StepTimes, dict[BareStep, np.ndarray], dict[str, Generation]]:
    """Seconds by round of each call and of each step of `batch` rows, by their own clocks, and the
    last generation of each call."""
    import torch

    generations: dict[str, Generation] = {}

    def on_round(outputs: Mapping[str, TimedGeneration]) -> None:
        for name, timed in outputs.items():
            if timed.generation is not None:
                generations[name] = timed.generation

    with torch.no_grad():
        step_calls = {f"step {i}": step.timed(run, batch) for i, step in enumerate(steps)}
        times = interleaved(
            {**calls, **step_calls},
            run.rounds,
            synchronise=run.synchronise,
            on_round=on_round,
            warm_up=1,
            pace=run.pace,
            label=label,
        )
    step_times = dict(zip(steps, (times.pop(name) for name in step_calls), strict=True))
    return times, step_times, generations


def _decoding_figures(
    generation: Generation, times: StepTimes, floor: np.ndarray | None, name: str
) -> dict[str, float | Estimate]:
    counters, tokens, plain = generation.counters, len(generation.tokens), times[PLAIN_DECODING]
    figures: dict[str, float | Estimate] = {
        "base passes a token": counters.base_passes / tokens,
        "other passes a token": counters.external_passes / tokens,
        "cache, bytes": float(counters.cache_bytes),
    }
    if floor is not None:
        figures["over its floor"] = median_ratio(
            times[name] / plain, floor, f"{name} over its floor"
        )
    if name not in (PLAIN_DECODING, INSERTION_READ):
        figures["over the insertion read"] = median_ratio(times[name], times[INSERTION_READ], name)
    if name not in (PLAIN_DECODING, ARGS_10):
        saved = 1 - (times[name] - plain) / (times[ARGS_10] - plain)
        share = estimate(median(saved), len(saved), f"{name}, saved")
        figures["of ARGS's extra saved, share"] = share
    return figures
