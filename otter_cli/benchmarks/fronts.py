"""Reward against KL over a method's strengths: the front, and the area under it as a number."""

from collections.abc import Mapping, Sequence

import numpy as np

from otter_cli.benchmarks.drawn import Drawn
from otter_cli.benchmarks.estimates import estimate
from otter_cli.benchmarks.front import Front
from otter_cli.benchmarks.measures import Measures
from otter_cli.benchmarks.names import PLAIN, family
from otter_cli.core.intervals import Counts, Statistic


def fronts(drawn: Drawn, measures: Mapping[str, Measures]) -> dict[str, Front]:
    """By family: `insertion` holds `insertion` and every `insertion@STRENGTH`."""
    grouped: dict[str, list[str]] = {}
    for name in measures:
        if name != PLAIN and "kl" in measures[name]:
            grouped.setdefault(family(name), []).append(name)
    families = {of: names for of, names in grouped.items() if len(names) > 1}
    if not families or "kl" not in measures[PLAIN]:
        return {}
    n = len(drawn.prompts)
    once = np.ones((1, n))
    start = float(measures[PLAIN]["kl"](once)[0])
    reached = [max(measures[m]["kl"](once)[0] for m in names) for names in families.values()]
    up_to = float(min(reached))
    if up_to <= start:
        return {}
    return {
        of: Front(
            methods=names,
            up_to=up_to,
            area=estimate(
                _area([measures[name] for name in (PLAIN, *names)], up_to),
                n,
                f"the area under the front of {of}",
            ),
        )
        for of, names in families.items()
    }


def _area(points: Sequence[Measures], up_to: float) -> Statistic:
    """The first of the points is plain's."""

    def areas(counts: Counts) -> np.ndarray:
        costs = np.stack([one["kl"](counts) for one in points], 1)  # [resamples, points]
        rewards = np.stack([one["gold_reward"](counts) for one in points], 1)
        gains = rewards - rewards[:, :1]
        return np.array([step_area(c, g, up_to) for c, g in zip(costs, gains, strict=True)])

    return areas


def step_area(costs: np.ndarray, gains: np.ndarray, up_to: float) -> float:
    """Mean over costs from `costs[0]` to `up_to` of the best gain that costs no more; the first
    point is where nothing is gained."""
    start = costs[0]
    if up_to <= start:
        return float("nan")
    order = np.argsort(costs, kind="stable")
    best = np.maximum.accumulate(gains[order])
    edges = np.clip(np.append(costs[order], up_to), start, up_to)
    return float((best * np.diff(edges)).sum() / (up_to - start))
