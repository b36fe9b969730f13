"""Figures with intervals, bootstrapped by prompt: the samples of one prompt stay together.

A mean is `sum(x) / sum(1)`, a rate `sum(tokens) / sum(seconds)`, a perplexity the exponential of a
rate, a speed-up a quotient of rates. Comparisons see the same resamples, which pairs them.
"""

import numpy as np
from pydantic import BaseModel, ConfigDict

from otter_cli.core.intervals import Counts, Statistic, interval


class Estimate(BaseModel):
    """A value with its 95 % percentile bootstrap interval; `n` counts the prompts resampled."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mean: float
    low: float
    high: float
    n: int


def estimate(statistic: Statistic, n: int, what: str) -> Estimate:
    """Raises OtterError, naming `what`, for no prompts and for values that are not finite."""
    found = interval(statistic, n, what=what)
    return Estimate(mean=found.mean, low=found.low, high=found.high, n=found.n)


def exponential(inner: Statistic) -> Statistic:
    """exp of a figure: a perplexity from negative log-likelihoods per token."""
    return lambda counts: np.exp(inner(counts))


def quotient(one: Statistic, other: Statistic) -> Statistic:
    """`one / other` on the same prompts; undefined where `other` is 0."""

    def divided(counts: Counts) -> np.ndarray:
        tops, bottoms = one(counts), other(counts)
        return np.divide(tops, bottoms, out=np.full_like(tops, np.nan), where=bottoms != 0)

    return divided
