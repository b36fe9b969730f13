"""Turns, warm-up, rates and peaks: what would make a ratio wrong without anybody seeing it."""

import numpy as np
import pytest
import torch

from otter_cli.benchmarks.overhead.measuring import (
    WARM_UP,
    CountedWork,
    MachineRates,
    interleaved,
    peak_above,
)
from otter_cli.benchmarks.overhead.result import median_ratio


def test_contestants_take_turns_and_none_is_always_first() -> None:
    order: list[str] = []
    steps = {name: lambda name=name: order.append(name) or name for name in "ab"}
    seen: list[dict[str, str]] = []
    times = interleaved(steps, 4, synchronise=lambda: None, on_round=lambda o: seen.append(dict(o)))
    rounds = [order[i : i + 2] for i in range(0, len(order), 2)]
    assert all(sorted(one) == ["a", "b"] for one in rounds) and len(rounds) == WARM_UP + 4
    assert {one[0] for one in rounds[:2]} == {"a", "b"}
    assert {name: len(t) for name, t in times.items()} == {"a": 4, "b": 4}
    assert seen == [{"a": "a", "b": "b"}] * (WARM_UP + 4)


def test_one_disturbed_round_does_not_move_the_ratio() -> None:
    base, graft = np.full(21, 2.0), np.full(21, 2.2)
    graft[7] = 900.0
    found = median_ratio(graft, base, "ratio")
    assert found.mean == pytest.approx(1.1) and found.n == 21
    assert found.low == pytest.approx(1.1) and found.high == pytest.approx(1.1)


def test_the_longer_of_moving_and_computing_bounds() -> None:
    rates = MachineRates(bytes_per_second=10.0, flops_per_second=100.0)
    assert rates.seconds(CountedWork(flops=100, bytes=20)) == 2.0
    assert rates.limit(CountedWork(flops=100, bytes=20)) == "bytes"
    assert rates.seconds(CountedWork(flops=500, bytes=20)) == 5.0
    assert rates.limit(CountedWork(flops=500, bytes=20)) == "flops"


def test_the_peak_counts_what_is_alive_at_once() -> None:
    def run() -> None:
        first = torch.ones(1000)
        del first
        kept = torch.ones(2000)
        (kept + 1).sum()

    assert 16_000 <= peak_above(run, "cpu") < 17_000
