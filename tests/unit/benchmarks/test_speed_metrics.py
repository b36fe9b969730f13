"""Drafting's counters against a toy whose acceptance is known, and by hand."""

import numpy as np
import pytest

from otter_cli.benchmarks.metrics import measures
from otter_cli.benchmarks.metrics.estimates import estimate
from otter_cli.benchmarks.records import MethodRows, Sample, SampleCounters, ScoredSample, Timing
from otter_cli.benchmarks.tasks.speedup import first_difference
from otter_cli.core.intervals import Statistic


def row(tokens: int, passes: int, drafted=(), accepted=(), seconds: float = 1.0, prompt="1"):
    counters = SampleCounters(
        base_passes=passes, tokens_fed=tokens, drafted=list(drafted), accepted=list(accepted)
    )
    key = {"method": "m", "prompt": prompt, "repeat": 0}
    sample = Sample(
        **key,
        seed=0,
        text="",
        tokens=list(range(tokens)),
        logprobs=[0.0] * tokens,
        finish="length",
        counters=counters,
    )
    return ScoredSample(sample, Timing(**key, seconds=seconds, session=0), {})


def rows(*each: ScoredSample) -> MethodRows:
    return MethodRows([[one] for one in each])


def value(statistic: Statistic, count: int) -> float:
    return estimate(statistic, count, "figure").mean


def drafted_by_chance(
    chances: list[float], new_tokens: int, rng: np.random.Generator
) -> ScoredSample:
    """Steps of drafts that are accepted with known chances, as long as the one before was."""
    tokens, passes = 0, 1
    drafted, accepted = [0] * len(chances), [0] * len(chances)
    while tokens < new_tokens:
        passes += 1
        tokens += 1
        for position, chance in enumerate(chances):
            drafted[position] += 1
            if rng.random() >= chance:
                drafted[position + 1 :] = [n + 1 for n in drafted[position + 1 :]]
                break
            accepted[position] += 1
            tokens += 1
    return row(tokens, passes, drafted, accepted)


def test_acceptance_and_tokens_per_step_of_a_toy_with_known_chances() -> None:
    chances = [0.7, 0.5, 0.2]
    rng = np.random.default_rng(0)
    toy = rows(*(drafted_by_chance(chances, 60, rng) for _ in range(400)))
    # A draft counts where it was offered: a position is reached by the product of the chances.
    reached = [0.7, 0.35, 0.07]
    found = measures.acceptance_by_position(toy)
    for position, chance in enumerate(reached):
        figure = estimate(found[f"acceptance_{position + 1}"], 400, "acceptance")
        assert figure.low <= chance <= figure.high
    per_step = estimate(measures.tokens_per_step(toy), 400, "tokens per step")
    assert per_step.low <= 1 + sum(reached) <= per_step.high
    alone = value(measures.drafted_per_step(toy), 400)
    assert alone == pytest.approx(per_step.mean - 1)


def test_plain_decoding_makes_one_token_a_step_and_drafts_none() -> None:
    plain = rows(row(20, 20), row(1, 1), row(7, 7))
    assert value(measures.tokens_per_step(plain), 3) == 1
    assert value(measures.drafted_per_step(plain), 3) == 0
    assert measures.acceptance_by_position(plain) == {}


def test_speed_up_is_a_ratio_of_sums() -> None:
    plain = rows(row(10, 10, seconds=1.0), row(100, 100, seconds=20.0))
    fast = rows(row(10, 5, seconds=0.1), row(100, 50, seconds=20.0))
    # 110 tokens in 20.1 s against 110 in 21 s, and not the mean of 10x and 1x.
    assert value(measures.speed_up(fast, plain), 2) == pytest.approx(21 / 20.1)


def test_speed_up_counts_each_sides_own_tokens() -> None:
    plain = rows(row(10, 10, seconds=1.0))
    short = rows(row(5, 5, seconds=0.5))
    assert value(measures.speed_up(short, plain), 1) == pytest.approx(1.0)


def test_positions_that_were_never_drafted_are_left_out() -> None:
    found = measures.acceptance_by_position(rows(row(9, 5, [4, 4, 0], [3, 1, 0]), row(9, 9)))
    assert set(found) == {"acceptance_1", "acceptance_2"}
    assert value(found["acceptance_1"], 2) == pytest.approx(0.75)


def test_identity_is_by_prompt() -> None:
    plain = rows(row(5, 5), row(6, 6), row(7, 7))
    other = rows(row(5, 3), row(6, 3), row(8, 3))
    assert value(measures.identical(other, plain), 3) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("one", "other", "position"),
    [([1, 2, 3], [1, 2, 3], None), ([1, 2], [1, 3], 1), ([1], [1, 2], 1), ([], [], None)],
)
def test_the_first_difference(one: list[int], other: list[int], position: int | None) -> None:
    assert first_difference(one, other) == position
