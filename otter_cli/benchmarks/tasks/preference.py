"""`otter bench preference`: does guidance raise a reward that guided nothing, and at what cost?

A method at several strengths gives a Pareto front of reward against KL to the base. The area under
it is one number."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar

import numpy as np

from otter_cli.benchmarks.benchmark import Benchmark, difference_sentence, figure_text
from otter_cli.benchmarks.metrics.estimates import Measures, estimate
from otter_cli.benchmarks.metrics.measures import diversity, kl_to_base, log_probability, perplexity
from otter_cli.benchmarks.records import (
    PLAIN,
    STRENGTH_MARK,
    MethodRecord,
    MethodRows,
    RunData,
    ScoredSample,
    method_family,
)
from otter_cli.benchmarks.results import BenchmarkName, MethodResult, ParetoFront
from otter_cli.core.errors import OtterError
from otter_cli.core.intervals import Counts, Share, Statistic, mean
from otter_cli.scorers.scorer import ScorerRecord

GOLD, COHERENCE = "gold", "coherence"


class Preference(Benchmark):
    """Scorers by role: `gold`, each guide under the name of a method that it guides, and where
    there is an encoder `coherence`."""

    name: ClassVar[BenchmarkName] = "preference"
    by_category = ("gold_reward", "win_rate")

    @classmethod
    def measures(cls, method: str, data: RunData) -> Measures:
        rows, plain = data.rows[method], data.rows[PLAIN]
        names = {role: f"{role}.{scorer.labels[0]}" for role, scorer in data.scorers.items()}
        rewards = {role: mean(rows.means(partial(_score, name))) for role, name in names.items()}
        coherence = {COHERENCE: rewards.pop(COHERENCE)} if COHERENCE in rewards else {}
        guide = _guide_role(data.methods[method], data.scorers)
        guiding = {"guiding_reward": rewards[guide]} if guide else {}
        return {
            "gold_reward": rewards.pop(GOLD),
            **({} if method == PLAIN else _wins(rows, plain, names[GOLD])),
            **guiding,
            **{f"reward_by_{role.replace('-', '_')}": value for role, value in rewards.items()},
            "diversity": mean(rows.means(lambda row: diversity(row.sample.text))),
            **coherence,
            "log_probability": log_probability(rows),
            **kl_to_base(rows, data.methods[method].steering),
            "perplexity": perplexity(rows),
            **cls.costs(method, data),
        }

    @classmethod
    def fronts(cls, data: RunData) -> dict[str, ParetoFront]:
        measures = {name: cls.measures(name, data) for name in data.rows}
        return pareto_fronts(measures, len(data.prompts))

    @classmethod
    def findings(cls, methods: Mapping[str, MethodResult]) -> list[str]:
        return [
            f"{difference_sentence(method, 'gold_reward')}; "
            f"{figure_text(method, 'time_ratio', unit=' times')} the time per token."
            for name, method in methods.items()
            if name != PLAIN and STRENGTH_MARK not in name
        ]


def require_independent_judge(judge: str, guides: Mapping[str, str]) -> None:
    """Raises OtterError where the judge's digest is that of a guide. `guides`: by digest, the
    method that it guides."""
    if judge in guides:
        raise OtterError(
            f"the gold reward model is the one that guides {guides[judge]}",
            hint="a guide that judges itself always wins: give --gold a model of its own data",
        )


def _score(name: str, row: ScoredSample) -> float:
    return row.scores[name]


def _guide_role(method: MethodRecord, scorers: Mapping[str, ScorerRecord]) -> str | None:
    """The role of the scorer that guides the method: the last of its models, if that scores."""
    if "guide" not in method.steering:
        return None
    digest = method.models[-1].weights
    return next((r for r, s in scorers.items() if r != GOLD and s.digest == digest), None)


def _wins(rows: MethodRows, plain: MethodRows, gold: str) -> Measures:
    """How often the judge prefers a response to plain's of the same prompt and repeat. A tie counts
    half; equal texts tie."""
    signs = [
        [np.sign(a.scores[gold] - b.scores[gold]) for a, b in zip(group, plain_group, strict=True)]
        for group, plain_group in zip(rows.groups, plain.groups, strict=True)
    ]
    return {
        "win_rate": Share(np.array([np.mean(np.add(group, 1)) / 2 for group in signs])),
        "tie_rate": Share(np.array([np.mean(np.equal(group, 0)) for group in signs])),
    }


def pareto_fronts(measures: Mapping[str, Measures], prompts: int) -> dict[str, ParetoFront]:
    """By family: `insertion` holds `insertion` and every `insertion@STRENGTH`. Empty where no
    family has several strengths, or KL to the base is unknown."""
    grouped: dict[str, list[str]] = {}
    for name in measures:
        if name != PLAIN and "kl" in measures[name]:
            grouped.setdefault(method_family(name), []).append(name)
    families = {family: names for family, names in grouped.items() if len(names) > 1}
    if not families or "kl" not in measures[PLAIN]:
        return {}
    kl = {
        name: float(m["kl"](np.ones((1, prompts)))[0]) for name, m in measures.items() if "kl" in m
    }
    up_to = min(max(kl[name] for name in names) for names in families.values())
    if up_to <= kl[PLAIN]:
        return {}
    return {
        family: ParetoFront(
            methods=names,
            up_to=up_to,
            area=estimate(
                _front_area([measures[name] for name in (PLAIN, *names)], up_to),
                prompts,
                f"the area under the front of {family}",
            ),
        )
        for family, names in families.items()
    }


def _front_area(points: Sequence[Measures], up_to: float) -> Statistic:
    """The first of the points is plain decoding."""

    def areas(counts: Counts) -> np.ndarray:
        costs = np.stack([point["kl"](counts) for point in points], 1)  # [resamples, points]
        rewards = np.stack([point["gold_reward"](counts) for point in points], 1)
        gains = rewards - rewards[:, :1]
        return np.array([step_area(c, g, up_to) for c, g in zip(costs, gains, strict=True)])

    return areas


def step_area(costs: np.ndarray, gains: np.ndarray, up_to: float) -> float:
    """Mean over costs from `costs[0]` to `up_to` of the best gain that costs no more. The first
    point has gain 0. NaN where `up_to` is not above its cost."""
    start = costs[0]
    if up_to <= start:
        return float("nan")
    order = np.argsort(costs, kind="stable")
    best = np.maximum.accumulate(gains[order])
    edges = np.clip(np.append(costs[order], up_to), start, up_to)
    return float((best * np.diff(edges)).sum() / (up_to - start))
