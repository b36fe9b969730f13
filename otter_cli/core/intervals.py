"""Intervals for means, shares, ratios, medians, AUROC, F1 and paired differences: by the bootstrap,
and for shares of none and of all by Clopper and Pearson.

A statistic is a function of how often each example counts. The point estimate counts every example
once, and each resample draws other counts.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from otter_cli.core.errors import OtterError

Counts = np.ndarray  # [resamples, n]
Statistic = Callable[[Counts], np.ndarray]  # -> [resamples], NaN where undefined

RESAMPLES = 2_000
CONFIDENCE = 0.95

# Resamples are drawn in pieces of this many counts (32 MB), for any number of examples.
_COUNTS_AT_ONCE = 2**22


@dataclass(frozen=True)
class Interval:
    """A figure over `n` examples with its 95 % interval: by the percentile bootstrap, but for a
    share of exactly 0 or 1."""

    mean: float
    low: float
    high: float
    n: int


def interval(statistic: Statistic, n: int, *, what: str = "the figure", seed: int = 0) -> Interval:
    """The figure over n examples. Raises OtterError where it is undefined for them."""
    value = float(statistic(np.ones((1, n)))[0]) if n else np.nan
    if not np.isfinite(value):
        raise OtterError(
            f"{what} is undefined on these {n} examples",
            hint="are there enough, are they of every class, and are the scores finite?",
        )
    if isinstance(statistic, Share) and value in (0.0, 1.0):
        return Interval(value, *_extreme_share(value, statistic.examples), n)
    random = np.random.default_rng(seed)
    rows = max(1, _COUNTS_AT_ONCE // n)
    pieces = [
        statistic(_draw(random, min(rows, RESAMPLES - start), n))
        for start in range(0, RESAMPLES, rows)
    ]
    tail = 50 * (1 - CONFIDENCE)
    # A resample without any example of a rare class has no figure. It does not count as zero.
    low, high = np.nanpercentile(np.concatenate(pieces), [tail, 100 - tail])
    return Interval(value, float(low), float(high), n)


def mean(values: np.ndarray) -> Statistic:
    return ratio(values, np.ones(len(values)))


class Share:
    """The share of all that holds, such as right answers of answers: sums of `holds` over sums of
    `of`, which no example exceeds. Each example that has any of them is one trial."""

    def __init__(self, holds: np.ndarray, of: np.ndarray | None = None) -> None:
        holds = np.asarray(holds, float)
        of = np.ones(len(holds)) if of is None else np.asarray(of, float)
        assert ((holds >= 0) & (holds <= of)).all(), "a share is between 0 and 1"
        self.examples = int((of > 0).sum())
        self._quotient = ratio(holds, of)

    def __call__(self, counts: Counts) -> np.ndarray:
        return self._quotient(counts)


def _extreme_share(value: float, n: int) -> tuple[float, float]:
    """The interval of Clopper and Pearson (Biometrika 26, 1934) where all of n trials agree. Every
    resample would agree too, so the bootstrap's has no width."""
    bound = ((1 - CONFIDENCE) / 2) ** (1 / n)
    return (bound, 1.0) if value else (0.0, 1 - bound)


def ratio(numerators: np.ndarray, denominators: np.ndarray) -> Statistic:
    """A quotient of sums, such as hits over attempts."""
    numerators, denominators = np.asarray(numerators, float), np.asarray(denominators, float)
    return lambda counts: _divide(counts @ numerators, counts @ denominators)


def median(values: np.ndarray) -> Statistic:
    """The middle value, or the mean of the two middle ones."""
    ordered, order = np.sort(np.asarray(values, float)), np.argsort(values, kind="stable")

    def middle(counts: Counts) -> np.ndarray:
        reached = counts[:, order].cumsum(axis=1)
        half = reached[:, -1:] / 2
        below, above = (reached >= half).argmax(axis=1), (reached > half).argmax(axis=1)
        return (ordered[below] + ordered[above]) / 2

    return middle


def correlation(x: np.ndarray, y: np.ndarray) -> Statistic:
    """Pearson's correlation, undefined where one of the two is constant."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    # Centred first, or the moments would be differences of large sums.
    x, y = x - x.mean(), y - y.mean()

    def pearson(counts: Counts) -> np.ndarray:
        n = counts.sum(axis=1)
        mean_x, mean_y = counts @ x / n, counts @ y / n
        variances = (counts @ x**2 / n - mean_x**2) * (counts @ y**2 / n - mean_y**2)
        return _divide(counts @ (x * y) / n - mean_x * mean_y, np.sqrt(variances.clip(0)))

    return pearson


def difference(first: Statistic, second: Statistic) -> Statistic:
    """`first - second` of the same examples, paired because both see the same counts."""
    return lambda counts: first(counts) - second(counts)


def f1(predicted: np.ndarray, truth: np.ndarray) -> Statistic:
    """Harmonic mean of precision and recall of the true class."""
    predicted, truth = np.asarray(predicted, float), np.asarray(truth, float)
    return ratio(2 * predicted * truth, predicted + truth)


def auroc(scores: np.ndarray, truth: np.ndarray) -> Statistic:
    """The probability that a true example scores above a false one. A tie counts half."""
    order = np.argsort(scores, kind="stable")
    true = np.asarray(truth, float)[order]
    _, starts = np.unique(np.asarray(scores)[order], return_index=True)

    def area(counts: Counts) -> np.ndarray:
        sorted_counts = counts[:, order]
        above = np.add.reduceat(sorted_counts * true, starts, axis=1)
        below = np.add.reduceat(sorted_counts * (1 - true), starts, axis=1)
        wins = (above * (np.cumsum(below, axis=1) - below / 2)).sum(axis=1)
        return _divide(wins, above.sum(axis=1) * below.sum(axis=1))

    return area


def _draw(random: np.random.Generator, resamples: int, n: int) -> Counts:
    drawn = random.integers(n, size=(resamples, n)) + n * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * n).reshape(resamples, n).astype(float)


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, NaN where b is 0."""
    return np.divide(a, b, out=np.full_like(a, np.nan), where=b != 0)
