"""Intervals equal scipy's and counts by hand, and undefined figures are refused."""

import numpy as np
import pytest

from otter_cli.core.errors import OtterError
from otter_cli.core.intervals import Share, auroc, difference, f1, interval, mean, median, ratio

ONE_EACH = np.ones((1, 6))
SCORES = np.array([0.1, 0.4, 0.4, 0.8, 0.9, 0.2])
TRUTH = np.array([0, 1, 0, 1, 1, 0])


def auroc_by_pairs(scores: np.ndarray, truth: np.ndarray) -> float:
    wins = [
        float(one > other) + 0.5 * float(one == other)
        for one in scores[truth == 1]
        for other in scores[truth == 0]
    ]
    return sum(wins) / len(wins)


def test_a_mean_agrees_with_scipys_bootstrap() -> None:
    from scipy.stats import bootstrap

    values = np.random.default_rng(1).normal(size=200)
    ours = interval(mean(values), 200)
    theirs = bootstrap(
        (values,), np.mean, method="percentile", n_resamples=2000, rng=np.random.default_rng(3)
    ).confidence_interval
    assert ours.mean == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.02)
    assert ours.high == pytest.approx(theirs.high, abs=0.02)
    assert ours.n == 200


def test_auroc_counts_ties_half() -> None:
    assert auroc(SCORES, TRUTH)(ONE_EACH)[0] == pytest.approx(auroc_by_pairs(SCORES, TRUTH))


def test_auroc_of_a_resample_is_that_of_repeated_examples() -> None:
    counts = np.array([[2, 1, 0, 3, 0, 1]])
    repeated = np.repeat(np.arange(6), counts[0])
    assert auroc(SCORES, TRUTH)(counts.astype(float))[0] == pytest.approx(
        auroc_by_pairs(SCORES[repeated], TRUTH[repeated])
    )


def test_f1_of_hand_counted_examples() -> None:
    predicted = np.array([1, 1, 0, 1, 0, 0])
    # Two hits, one false alarm, one miss.
    assert f1(predicted, TRUTH)(ONE_EACH)[0] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))


def test_a_ratio_is_of_sums_not_a_mean_of_ratios() -> None:
    assert ratio(np.array([1.0, 9.0]), np.array([1.0, 90.0]))(np.ones((1, 2)))[0] == 10 / 91


def test_pairing_narrows_a_difference() -> None:
    random = np.random.default_rng(0)
    shared = random.normal(size=300)
    one, other = shared + 0.1, shared + 0.01 * random.normal(size=300)
    paired = interval(difference(mean(one), mean(other)), 300)
    alone = interval(mean(one), 300)
    assert paired.high - paired.low < 0.1 * (alone.high - alone.low)
    assert paired.low > 0.09


def test_pieces_cover_many_examples() -> None:
    many = interval(mean(np.arange(30_000) % 2), 30_000)
    assert many.low < 0.5 < many.high
    # The normal approximation: 1.96 standard errors on either side.
    assert many.high - many.low == pytest.approx(2 * 1.96 * 0.5 / 30_000**0.5, rel=0.1)


def test_a_rare_class_leaves_an_interval() -> None:
    truth = np.zeros(40)
    truth[0] = 1
    found = interval(auroc(np.arange(40.0), truth), 40)
    assert found.mean == 0 and np.isfinite([found.low, found.high]).all()


@pytest.mark.parametrize(
    ("statistic", "n"),
    [(mean(np.zeros(0)), 0), (auroc(SCORES, np.ones(6)), 6), (mean(np.array([np.nan, 1])), 2)],
)
def test_what_is_undefined_is_refused(statistic, n) -> None:
    with pytest.raises(OtterError, match="accuracy is undefined"):
        interval(statistic, n, what="accuracy")


def test_the_same_seed_gives_the_same_interval() -> None:
    values = mean(np.random.default_rng(5).random(50))
    assert interval(values, 50) == interval(values, 50)
    assert interval(values, 50) != interval(values, 50, seed=1)


@pytest.mark.parametrize("n", [1, 2, 9, 10])
def test_the_median_is_numpys_on_every_resample(n: int) -> None:
    random = np.random.default_rng(n)
    values = random.normal(size=n)
    counts = np.stack([np.bincount(random.integers(n, size=n), minlength=n) for _ in range(50)])
    expected = [np.median(np.repeat(values, row)) for row in counts]
    np.testing.assert_allclose(median(values)(counts.astype(float)), expected)


@pytest.mark.parametrize("n", [1, 7, 200])
@pytest.mark.parametrize("value", [0, 1])
def test_a_share_of_none_or_of_all_has_the_exact_interval(n: int, value: int) -> None:
    from scipy.stats import binomtest

    got = interval(Share(np.full(n, value)), n)
    expected = binomtest(value * n, n).proportion_ci(0.95, method="exact")
    assert (got.mean, got.n) == (value, n)
    assert got.low == pytest.approx(expected.low)
    assert got.high == pytest.approx(expected.high)


def test_a_share_in_between_is_bootstrapped_as_a_mean_is() -> None:
    right = np.random.default_rng(2).random(50) < 0.8
    assert interval(Share(right), 50) == interval(mean(right), 50)


def test_examples_without_a_trial_do_not_narrow_a_share() -> None:
    flagged, offending = np.array([1, 0, 1, 0]), np.array([1, 0, 1, 0])
    assert interval(Share(flagged, offending), 4).low == pytest.approx(0.025**0.5)


def test_a_mean_of_zeros_is_no_share() -> None:
    assert interval(mean(np.zeros(5)), 5).high == 0


def test_no_more_than_all_can_hold() -> None:
    with pytest.raises(AssertionError, match="between 0 and 1"):
        Share(np.array([2.0]))
