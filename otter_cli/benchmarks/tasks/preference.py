"""`otter bench preference`: does guidance raise a reward that guided nothing, and at what cost?

A method at several strengths gives a Pareto front of reward against KL to the base; the area
under it is one number."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar

import numpy as np

from otter_cli.benchmarks.benchmark import Benchmark, difference_sentence, ratio_text
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
from otter_cli.core.intervals import Counts, Statistic, mean
from otter_cli.scorers.scorer import ScorerRecord


def pareto_fronts(drawn: RunData, measures: Mapping[str, Measures]) -> dict[str, ParetoFront]:
    """By family: `insertion` holds `insertion` and every `insertion@STRENGTH`."""
    grouped: dict[str, list[str]] = {}
    for name in measures:
        if name != PLAIN and "kl" in measures[name]:
            grouped.setdefault(method_family(name), []).append(name)
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
        of: ParetoFront(
            methods=names,
            up_to=up_to,
            area=estimate(
                _front_area([measures[name] for name in (PLAIN, *names)], up_to),
                n,
                f"the area under the front of {of}",
            ),
        )
        for of, names in families.items()
    }


def _front_area(points: Sequence[Measures], up_to: float) -> Statistic:
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


GOLD, COHERENCE = "gold", "coherence"


class Preference(Benchmark):
    """Scorers: `gold`, and each guide by the name of the method that it guides."""

    name: ClassVar[BenchmarkName] = "preference"
    by_category = ("gold_reward", "win_rate")

    @classmethod
    def measures(cls, method: str, drawn: RunData) -> Measures:
        own, plain = drawn.rows[method], drawn.rows[PLAIN]
        gold = f"{GOLD}.{drawn.scorers[GOLD].labels[0]}"
        guide = _guide_role(drawn.methods[method], drawn.scorers)
        by_role = {
            role: mean(own.means(partial(_scorer_value, f"{role}.{scorer.labels[0]}")))
            for role, scorer in drawn.scorers.items()
        }
        coherent = {COHERENCE: by_role.pop(COHERENCE)} if COHERENCE in by_role else {}
        guiding: Measures = {"guiding_reward": by_role[guide]} if guide else {}
        return {
            "gold_reward": by_role.pop(GOLD),
            **_wins(own, plain, gold, shown=method != PLAIN),
            **guiding,
            **{f"reward_by_{role.replace('-', '_')}": value for role, value in by_role.items()},
            "diversity": mean(own.means(lambda row: diversity(row.sample.text))),
            **coherent,
            "log_probability": log_probability(own),
            **kl_to_base(own, drawn.methods[method].steering),
            "perplexity": perplexity(own),
            **cls.costs(method, drawn),
        }

    @classmethod
    def fronts(cls, drawn: RunData) -> dict[str, ParetoFront]:
        return pareto_fronts(drawn, {name: cls.measures(name, drawn) for name in drawn.rows})

    @classmethod
    def findings(cls, methods: Mapping[str, MethodResult]) -> list[str]:
        found = []
        for name, method in methods.items():
            if name != PLAIN and STRENGTH_MARK not in name:
                sentence = difference_sentence(method, "gold_reward")
                found.append(f"{sentence}; {ratio_text(method, 'time_ratio')} the time per token.")
        return found


def _guide_role(method: MethodRecord, scorers: Mapping[str, ScorerRecord]) -> str | None:
    """The role of the scorer that guides the method, where it scores: the last of its models."""
    if "guide" not in method.steering:
        return None
    digest = method.models[-1].weights
    return next((r for r, s in scorers.items() if r != GOLD and s.digest == digest), None)


def _wins(own: MethodRows, plain: MethodRows, gold: str, *, shown: bool) -> Measures:
    """How often the judge prefers a response to plain's of the same prompt and repeat; a tie, which
    equal texts are, counts half."""
    if not shown:
        return {}
    signs = [
        [np.sign(a.scores[gold] - b.scores[gold]) for a, b in zip(ours, theirs, strict=True)]
        for ours, theirs in zip(own.groups, plain.groups, strict=True)
    ]
    return {
        "win_rate": mean(np.array([np.mean(np.add(group, 1)) / 2 for group in signs])),
        "tie_rate": mean(np.array([np.mean(np.equal(group, 0)) for group in signs])),
    }


def _scorer_value(name: str, row: ScoredSample) -> float:
    return row.scores[name]


def require_independent_judge(judge: str, guides: Mapping[str, str]) -> None:
    """Raises OtterError where the judge's digest is among those of the guides, given with what
    they guide."""
    if judge in guides:
        raise OtterError(
            f"the gold reward model is the one that guides {guides[judge]}",
            hint="a guide that judges itself always wins: give --gold a model of its own data",
        )
