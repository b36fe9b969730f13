"""The benchmarks' own figures against scipy, and figures that are none."""

import numpy as np
import pytest
import scipy.stats

from otter_cli.benchmarks.metrics.estimates import estimate, exponential, quotient
from otter_cli.core.errors import OtterError
from otter_cli.core.intervals import Statistic, difference, mean, ratio

PROMPTS = 80


@pytest.fixture(scope="module")
def columns() -> np.ndarray:
    """Tokens, seconds, and the seconds of a control that shares most of their noise."""
    random = np.random.default_rng(3)
    tokens = random.integers(5, 60, size=PROMPTS).astype(float)
    seconds = tokens * 0.01 * random.lognormal(0, 0.3, size=PROMPTS)
    return np.stack([tokens, seconds, seconds * random.normal(2, 0.02, size=PROMPTS)], axis=-1)


def close_to_scipy(statistic: Statistic, columns: np.ndarray, reference) -> None:
    found = estimate(statistic, PROMPTS, "figure")
    theirs = scipy.stats.bootstrap(
        (np.arange(PROMPTS),),
        lambda drawn: reference(columns[drawn]),
        vectorized=False,
        method="percentile",
        n_resamples=4_000,
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert found.mean == pytest.approx(reference(columns)) and found.n == PROMPTS
    # Two Monte Carlo bootstraps: their ends agree to a small part of the interval.
    width = theirs.high - theirs.low
    assert found.low == pytest.approx(theirs.low, abs=0.1 * width)
    assert found.high == pytest.approx(theirs.high, abs=0.1 * width)


def test_a_speed_up_is_a_quotient_of_rates_paired_by_prompt(columns) -> None:
    tokens, seconds, control = columns.T
    fast, slow = ratio(tokens, seconds), ratio(tokens, control)
    close_to_scipy(quotient(fast, slow), columns, lambda rows: rows[:, 2].sum() / rows[:, 1].sum())
    paired = estimate(quotient(fast, slow), PROMPTS, "speed-up")
    alone = estimate(fast, PROMPTS, "rate")
    # The noise is shared: the quotient is known far better than either rate.
    assert (paired.high - paired.low) / paired.mean < 0.2 * (alone.high - alone.low) / alone.mean


def test_a_speed_up_is_no_mean_of_ratios(columns) -> None:
    tokens, seconds, _ = columns.T
    uneven = seconds * (1 + np.arange(PROMPTS) / 10)
    found = estimate(quotient(ratio(tokens, seconds), ratio(tokens, uneven)), PROMPTS, "speed-up")
    assert found.mean == pytest.approx(uneven.sum() / seconds.sum())
    assert found.mean != pytest.approx((uneven / seconds).mean(), rel=1e-3)


def test_a_perplexity_is_the_exponential_of_the_whole(columns) -> None:
    close_to_scipy(
        exponential(ratio(columns[:, 1], columns[:, 0])),
        columns,
        lambda rows: np.exp(rows[:, 1].sum() / rows[:, 0].sum()),
    )


def test_a_method_against_itself_gains_exactly_nothing(columns) -> None:
    values = columns[:, 0]
    same = estimate(difference(mean(values), mean(values)), PROMPTS, "difference")
    assert (same.mean, same.low, same.high) == (0, 0, 0)
    rate = ratio(values, columns[:, 1])
    once = estimate(quotient(rate, rate), PROMPTS, "speed-up")
    assert (once.mean, once.low, once.high) == (1, 1, 1)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("lie", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_stops(lie: float) -> None:
    with pytest.raises(OtterError, match="log-probability is undefined on these 3 examples"):
        estimate(ratio(np.array([1, 2, lie]), np.ones(3)), 3, "log-probability")


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_a_perplexity_that_overflows_stops_instead_of_being_dropped() -> None:
    with pytest.raises(OtterError, match="perplexity"):
        estimate(exponential(ratio(np.array([1e6, 1.0]), np.ones(2))), 2, "perplexity")


def test_nothing_to_average_and_nothing_to_divide_by_are_errors() -> None:
    with pytest.raises(OtterError, match="gold reward"):
        estimate(mean(np.array([])), 0, "gold reward")
    none = ratio(np.ones(2), np.zeros(2))
    with pytest.raises(OtterError, match="speed-up"):
        estimate(quotient(none, none), 2, "speed-up")
