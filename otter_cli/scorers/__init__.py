"""Models and rules that give scores.

`load` is the one strict loader. `text_scorer` scores single texts, as teachers and labellers do.
`scorer` defines scorers of responses; `response_models` and `detoxify` are such scorers. No score
comes from a randomly initialised tensor, and there is no default score: a failure stops the run."""

from otter_cli.scorers.scorer import Exchange, RuleScorer, Scorer, ScorerRecord, score_all

__all__ = ["Exchange", "RuleScorer", "Scorer", "ScorerRecord", "score_all"]
