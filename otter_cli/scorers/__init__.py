"""Models and rules that give scores, all loaded strictly.

A score never comes from a tensor that was initialised at random. A scorer that fails stops the
run: there is no default score."""

from otter_cli.scorers.scorer import Exchange, RuleScorer, Scorer, ScorerRecord, score_all

__all__ = ["Exchange", "RuleScorer", "Scorer", "ScorerRecord", "score_all"]
