"""The least that a method of decoding can take, over plain decoding's time for a token: steps of
bare models, in turns with the methods, and the insertion's work by count."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from otter_cli.benchmarks.overhead import passes
from otter_cli.benchmarks.overhead.bench import Bench
from otter_cli.benchmarks.overhead.clock import Timed
from otter_cli.benchmarks.overhead.costs import random_tokens
from otter_cli.benchmarks.overhead.work import Pass, Work, base_work, inserted_work
from otter_cli.insertion import Plan

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_FEW = 5


@dataclass(frozen=True)
class Step:
    """`width` tokens in `copies` of each row, of the base or of a separate reward `model`."""

    width: int
    model: PreTrainedModel | None = None
    copies: int = 1

    def of(self, bench: Bench, batch: int) -> Callable[[], Tensor]:
        """The same step, to be run again and again, over the run's context."""
        stock, rows = bench.subject.stock, self.copies * batch
        one = (
            passes.stock_base(stock)
            if self.model is None
            else passes.separate_reward_model(self.model)
        )
        prompt = random_tokens(bench.subject, rows, bench.settings.context, "prompt")
        return passes.again(one, prompt, random_tokens(bench.subject, rows, self.width, "step"))

    def timed(self, bench: Bench, batch: int) -> Callable[[], Timed]:
        """The median of a few of them in a row."""
        step = self.of(bench, batch)

        def timed() -> Timed:
            seconds = []
            for _ in range(_FEW):
                bench.synchronise()
                started = time.perf_counter()
                step()
                bench.synchronise()
                seconds.append(time.perf_counter() - started)
            return Timed(float(np.median(seconds)))

        return timed


@dataclass(frozen=True)
class Floors:
    """Seconds by round: `plain` decoding's for a token of each of `batch` rows, and each step's."""

    bench: Bench
    batch: int
    plain: np.ndarray
    steps: Mapping[Step, np.ndarray]

    def step(self, width: int, model: PreTrainedModel | None = None, copies: int = 1) -> np.ndarray:
        """Over plain decoding's, [rounds]."""
        return self.steps[Step(width, model, copies)] / self.plain

    def inserted(self, plan: Plan, *, products: int = 0, tokens: int = 1) -> float:
        """By work: a pass with the insertion, which runs once for `tokens`, and `products` more
        over the vocabulary."""
        shape, size = self.bench.subject.shape, self.bench.subject.stock.dtype.itemsize
        one = Pass(self.batch, 1, self.bench.settings.context, size)
        base = base_work(shape, self.bench.subject.layer_weights, one)
        head = products * shape.vocab * shape.hidden
        many = inserted_work(plan, Pass(self.batch, tokens, self.bench.settings.context, size))
        inserted = Work(many.flops / tokens, many.bytes / tokens)
        whole = base + inserted + Work(2 * head * self.batch, head * size)
        return self.bench.rates.seconds(whole) / self.bench.rates.seconds(base)
