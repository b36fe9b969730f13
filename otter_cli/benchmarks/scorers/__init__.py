"""Scorers: what judges a response. One that fails stops the run; there is no default score."""

from otter_cli.benchmarks.scorers.scorer import (
    Exchange,
    RuleScorer,
    Scorer,
    ScorerRecord,
    score_all,
)

__all__ = ["Exchange", "RuleScorer", "Scorer", "ScorerRecord", "score_all"]
