"""`otter bench preference`: does guidance raise a reward that guided nothing, and at what cost?"""

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import numpy as np

from otter_cli.benchmarks.benchmark import Benchmark
from otter_cli.benchmarks.drawn import Drawn
from otter_cli.benchmarks.front import Front
from otter_cli.benchmarks.fronts import fronts
from otter_cli.benchmarks.measures import Measures, divergence, log_probability, perplexity
from otter_cli.benchmarks.metrics.text import diversity
from otter_cli.benchmarks.names import PLAIN, SWEPT
from otter_cli.benchmarks.records import Rows, Scored
from otter_cli.benchmarks.result import BenchmarkName, MethodResult
from otter_cli.benchmarks.scorers import ScorerRecord
from otter_cli.benchmarks.sentences import against_plain, times
from otter_cli.benchmarks.settings import MethodRecord
from otter_cli.core.errors import OtterError
from otter_cli.core.intervals import mean

GOLD, COHERENCE = "gold", "coherence"


class Preference(Benchmark):
    """Scorers: `gold`, and each guide by the name of the method that it guides."""

    name: ClassVar[BenchmarkName] = "preference"
    by_category = ("gold_reward", "win_rate")

    @classmethod
    def measures(cls, method: str, drawn: Drawn) -> Measures:
        own, plain = drawn.rows[method], drawn.rows[PLAIN]
        gold = f"{GOLD}.{drawn.scorers[GOLD].labels[0]}"
        guide = _guide(drawn.methods[method], drawn.scorers)
        by_role = {
            role: mean(own.means(partial(_score, f"{role}.{scorer.labels[0]}")))
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
            **divergence(own, drawn.methods[method].steering),
            "perplexity": perplexity(own),
            **cls.costs(method, drawn),
        }

    @classmethod
    def fronts(cls, drawn: Drawn) -> dict[str, Front]:
        return fronts(drawn, {name: cls.measures(name, drawn) for name in drawn.rows})

    @classmethod
    def findings(cls, methods: Mapping[str, MethodResult]) -> list[str]:
        found = []
        for name, method in methods.items():
            if name != PLAIN and SWEPT not in name:
                sentence = against_plain(method, "gold_reward")
                found.append(f"{sentence}; {times(method, 'time_ratio')} the time per token.")
        return found


def _guide(method: MethodRecord, scorers: Mapping[str, ScorerRecord]) -> str | None:
    """The role of the scorer that guides the method, where it scores: the last of its models."""
    if "guide" not in method.steering:
        return None
    digest = method.models[-1].weights
    return next((r for r, s in scorers.items() if r != GOLD and s.digest == digest), None)


def _wins(own: Rows, plain: Rows, gold: str, *, shown: bool) -> Measures:
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


def _score(name: str, row: Scored) -> float:
    return row.scores[name]


def require_guides_nothing(judge: str, guides: Mapping[str, str]) -> None:
    """Raises OtterError where the judge's digest is among those of the guides, given with what
    they guide."""
    if judge in guides:
        raise OtterError(
            f"the gold reward model is the one that guides {guides[judge]}",
            hint="a guide that judges itself always wins: give --gold a model of its own data",
        )
