"""Turns, warm-up, rates and peaks: what would make a ratio wrong without anybody seeing it."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from otter_cli.benchmarks.overhead import measuring
from otter_cli.benchmarks.overhead.measuring import (
    WARM_UP,
    CountedWork,
    MachineRates,
    Pace,
    TimedGeneration,
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


class Clock:
    """A clock that only steps move."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(measuring.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(measuring.time, "perf_counter", lambda: self.now)

    def step(self, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.now += seconds

        return run


@pytest.mark.parametrize(
    ("seconds", "rounds"),
    # Three warm-up rounds of 2 s. Then rounds of 2 s up to the deadline.
    [(None, 50), (1000.0, 50), (26.0, 10), (10.5, 2), (8.1, 2), (7.0, 2), (1.0, 2)],
)
def test_a_phase_gets_the_rounds_that_fit(
    monkeypatch: pytest.MonkeyPatch, seconds: float | None, rounds: int
) -> None:
    clock = Clock(monkeypatch)
    steps = {"base": clock.step(0.5), "graft": clock.step(1.5)}
    pace = Pace().phase(seconds)
    times = interleaved(steps, 50, synchronise=lambda: None, pace=pace)
    assert {name: len(t) for name, t in times.items()} == {"base": rounds, "graft": rounds}
    assert np.allclose(times["graft"] / times["base"], 3)
    # Too little time for two rounds more: a warm-up round is kept, so that there are two.
    assert seconds is None or clock.now <= max(seconds, 8.0)


def test_a_phase_ends_where_rounds_become_slower_than_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    durations = iter([1.0] * 5 + [30.0] * 95)

    def step() -> None:
        clock.now += next(durations)

    times = interleaved({"a": step}, 50, synchronise=lambda: None, pace=Pace().phase(60.0))
    assert list(times["a"]) == [1.0, 1.0, 30.0, 30.0]


def test_parts_share_what_is_left_of_a_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    phase = Pace().phase(60.0)
    assert phase.share(3).deadline == 20.0
    clock.now = 40.0
    assert phase.share(2).deadline == 50.0 and not phase.is_over
    assert Pace().share(3).deadline is None


def test_an_interrupt_keeps_the_whole_rounds() -> None:
    calls = []
    steps = {name: lambda name=name: calls.append(name) for name in "ab"}
    pace = Pace(interrupted=lambda: len(calls) >= 2 * WARM_UP + 5)  # in the third round
    times = interleaved(steps, 50, synchronise=lambda: None, pace=pace)
    assert {name: len(t) for name, t in times.items()} == {"a": 2, "b": 2}
    with pytest.raises(KeyboardInterrupt):
        interleaved(steps, 50, synchronise=lambda: None, pace=Pace(interrupted=lambda: True))


def test_a_step_with_its_own_clock_is_taken_at_its_word() -> None:
    steps = {"a": lambda: TimedGeneration(2.0), "b": lambda: TimedGeneration(3.0)}
    times = interleaved(steps, 4, synchronise=lambda: None)
    assert list(times["b"] / times["a"]) == [1.5] * 4


def test_progress_has_the_ratios_so_far(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    steps = {"base": clock.step(1.0), "graft": clock.step(1.5)}
    interleaved(steps, 20, synchronise=lambda: None, label="decode")
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.startswith("decode, warm-up: ")
    assert "decode: " in rest[-1] and "graft 1.500 of base's time" in rest[-1]
    assert len(rest) < 8  # a line every 15 s of the 50 s


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
