"""A scorer that lies stops the run, and says where."""

import math
from collections.abc import Sequence

import pytest

from otter_cli.core.errors import OtterError
from otter_cli.scorers.scorer import Exchange, RuleScorer, ScorerRecord, score_all

EXCHANGES = [Exchange(f"prompt {i}", "2 + 2 =", " 4" * i) for i in range(5)]


class Liar:
    """Answers whatever it is told to."""

    record = ScorerRecord(name="liar", kind="rule", digest="0", labels=["reward"])

    def __init__(self, answer) -> None:
        self.answer = answer

    def score(self, exchanges: Sequence[Exchange]):
        return self.answer(exchanges)


def ignore(count: int) -> None:
    del count


def refused(answer) -> OtterError:
    with pytest.raises(OtterError) as caught:
        score_all(Liar(answer), EXCHANGES, ignore, batch=2)
    assert "liar" in caught.value.what and caught.value.hint
    return caught.value


def test_a_rule_scores_every_exchange_in_order_and_reports_progress() -> None:
    advanced: list[int] = []
    rule = RuleScorer("length", lambda prompt, response: len(response), digest="1")
    scores = score_all(rule, EXCHANGES, advanced.append, batch=2)
    assert scores == {"reward": [0, 2, 4, 6, 8]}
    assert advanced == [2, 2, 1]


def test_a_scorer_that_raises_stops_the_run() -> None:
    def answer(exchanges):
        raise ZeroDivisionError("no words")

    error = refused(answer)
    assert "prompt 0" in error.what and "ZeroDivisionError: no words" in error.what
    assert isinstance(error.__cause__, ZeroDivisionError)


def test_a_scorers_own_explanation_is_passed_on() -> None:
    def answer(exchanges):
        raise OtterError("the liar is not at home", hint="come back later")

    assert refused(answer).what == "the liar is not at home"


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_stops_the_run(number: float) -> None:
    error = refused(lambda exchanges: {"reward": [0.0, number][: len(exchanges)]})
    assert str(number) in error.what and "prompt 1" in error.what


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_wrong_count_stops_the_run(count: int) -> None:
    error = refused(lambda exchanges: {"reward": [0.0] * count})
    assert f"gave {count} scores" in error.what and "2 texts" in error.what


def test_a_missing_label_stops_the_run() -> None:
    error = refused(lambda exchanges: {"toxicity": [0.0] * len(exchanges)})
    assert "no 'reward'" in error.what and "toxicity" in error.what
