"""A figure over seeds, with an interval for both chances: another seed, and other prompts."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from otter_cli.benchmarks.result_file import Part

# Two-sided 95 % of Student's t by degrees of freedom, 1 to 30; for more of them the last is wide.
_STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


class Seeded(NamedTuple):
    """A figure of one seed, and how far its interval over prompts reaches: 0 where it has none."""

    mean: float
    below: float = 0.0
    above: float = 0.0


class OverSeeds(Part):
    """Mean over `n` seeds, with a 95 % interval; of one seed there is none, and it says so."""

    mean: float
    low: float | None
    high: float | None
    n: int
    values: list[float]


def over_seeds(figures: Sequence[Seeded]) -> OverSeeds:
    """Student's t over the seeds and, in quadrature, the reach over prompts. Seeds share their
    prompts, so averaging over seeds is not taken to narrow that: it is the seeds' mean reach."""
    values, n = [figure.mean for figure in figures], len(figures)
    mean = float(np.mean(values))
    if n == 1:
        return OverSeeds(mean=mean, low=None, high=None, n=1, values=values)
    t = _STUDENT[min(n - 1, len(_STUDENT)) - 1]
    seeds = t * float(np.std(values, ddof=1)) / n**0.5
    below, above = (
        float(np.hypot(seeds, np.mean(reach)))
        for reach in ([f.below for f in figures], [f.above for f in figures])
    )
    return OverSeeds(mean=mean, low=mean - below, high=mean + above, n=n, values=values)
