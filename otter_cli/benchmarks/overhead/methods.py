"""Methods of guided decoding: what each runs beside the base, and the least that it can take."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from otter_cli.benchmarks.overhead.bench import Bench
from otter_cli.benchmarks.overhead.classifier import expert, separate
from otter_cli.benchmarks.overhead.clock import Timed
from otter_cli.benchmarks.overhead.floors import Floors, Step

if TYPE_CHECKING:
    from otter_cli.decoding import Sampling

CANDIDATES = (5, 10, 20)
PLAIN, READ, ARGS = "plain", "plain, insertion read", "ARGS k = 10"
LATER = "plain, insertion read later"
_K = 10
_OF = 8


Call = Callable[[], Timed]


def new_tokens(batch: int) -> int:
    """How many are timed: with many rows a token takes several times as long."""
    return 16 if batch == 1 else 8


@dataclass(frozen=True)
class Method:
    """`floor`: of its time over plain decoding's."""

    call: Call
    floor: Callable[[Floors], np.ndarray | float] | None = None


class Methods:
    """Those of a bench. Models are made once, at random, of the base's own shape."""

    def __init__(self, bench: Bench) -> None:
        subject = bench.with_signals("reward", "action-reward")
        self.model, self.plan = subject.graft, subject.plans[0]
        self.reward_model = separate(bench.subject.stock)
        self.expert, self.anti_expert = (expert(bench.subject.stock) for _ in range(2))

    @property
    def steps(self) -> list[Step]:
        """What the floors are made of."""
        own = [Step(width) for width in (1, *CANDIDATES)]
        return [*own, Step(_K, self.reward_model), Step(1, copies=_OF)]

    def of(self, prompts: list[list[int]]) -> dict[str, Method]:
        """By name; all of them greedy, but for the best of several draws."""
        from otter_cli.decoding import Sampling, generate

        greedy = Sampling(new_tokens(len(prompts)), ignore_eos=True)

        def call(**options: Any) -> Call:
            def timed() -> Timed:
                seen: list[float] = []
                rows = generate(
                    self.model,
                    prompts,
                    greedy,
                    on_token=lambda row, token: seen.append(time.perf_counter()),
                    **options,
                )
                # From a token to the next: who feeds the last one too is not charged for it.
                return Timed(float(np.median(np.diff(seen[:: len(prompts)]))), rows[0])

            return timed

        return {
            PLAIN: Method(call()),
            READ: Method(call(signals=["reward"], read_every=1), self._read),
            LATER: Method(self._later(prompts, greedy), self._read_later),
            **self._by_insertion(call),
            **self._by_others(call),
            **self._best_of(prompts),
        }

    def _later(self, prompts: list[list[int]], sampling: Sampling) -> Call:
        """Signals of all tokens at once, after the last: the mean time of a token."""
        from otter_cli.decoding import generate

        def timed() -> Timed:
            every = sampling.max_new_tokens
            first, *_ = generate(
                self.model, prompts, sampling, signals=["reward"], read_every=every
            )
            return Timed(first.counters.seconds / (first.counters.base_passes - 1), first)

        return timed

    def _by_insertion(self, call: Callable[..., Call]) -> dict[str, Method]:
        from otter_cli.decoding import SignalGuide, VocabularyGuide

        def value(k: int) -> Method:
            return Method(
                call(guide=SignalGuide("reward", 1.0, k)),
                lambda floors: 1 + floors.step(k) - floors.step(1),
            )

        candidates = VocabularyGuide("action-reward", 1.0, _K)
        everything = VocabularyGuide("action-reward", 1.0, 0)
        return {
            **{f"V-style k = {k}": value(k) for k in CANDIDATES},
            f"Q-style k = {_K}": Method(call(guide=candidates), self._read),
            "Q-style, all tokens": Method(
                call(guide=everything), lambda floors: floors.inserted(self.plan, products=1)
            ),
        }

    def _by_others(self, call: Callable[..., Call]) -> dict[str, Method]:
        from otter_cli.decoding import ArgsGuide, DExpertsGuide, GenArmGuide, RadGuide

        experts = DExpertsGuide(self.expert, self.anti_expert, 1.0)

        def rewards(floors: Floors) -> np.ndarray:
            return 1 + floors.step(_K, self.reward_model)

        return {
            ARGS: Method(call(guide=ArgsGuide(self.reward_model, 1.0, _K)), rewards),
            f"RAD k = {_K}": Method(call(guide=RadGuide(self.reward_model, 1.0, _K)), rewards),
            "DExperts": Method(call(guide=experts), lambda floors: 1 + 2 * floors.step(1)),
            "GenARM": Method(
                call(guide=GenArmGuide(self.expert, 1.0)), lambda floors: 1 + floors.step(1)
            ),
        }

    def _best_of(self, prompts: list[list[int]]) -> dict[str, Method]:
        from otter_cli.decoding import BestOf, Sampling, best_of

        drawn = Sampling(new_tokens(len(prompts)), temperature=1.0, ignore_eos=True)

        def call(**judge: Any) -> Call:
            def timed() -> Timed:
                (first, *_) = best_of(self.model, prompts, drawn, BestOf(_OF, **judge))
                return Timed(first.counters.seconds / (first.counters.base_passes - 1), first)

            return timed

        return {
            f"best of {_OF} by the insertion": Method(
                call(signal="reward"),
                lambda floors: self._read(floors) * floors.step(1, copies=_OF),
            ),
            f"best of {_OF} by a reward model": Method(
                call(reward_model=self.reward_model), lambda floors: floors.step(1, copies=_OF)
            ),
        }

    def _read(self, floors: Floors) -> float:
        return floors.inserted(self.plan)

    def _read_later(self, floors: Floors) -> float:
        return floors.inserted(self.plan, tokens=new_tokens(floors.batch))
