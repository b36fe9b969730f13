"""A monitor's figures against a table worked by hand."""

import numpy as np
import pytest

from otter_cli.benchmarks.metrics import measures
from otter_cli.benchmarks.tasks.detection import texts_of_pairs
from otter_cli.data.pairs import PreferencePair

# Offending: flagged at once; flagged after its span; never flagged. Clean: quiet; one false alarm.
HAND = measures.ScoredStreams(
    scores=[[0.9, 0.9, 0.2, 0.1], [0.1, 0.2, 0.3, 0.8], [0.4, 0.4], [0.1, 0.1, 0.1], [0.1, 0.7]],
    offends_by=[2, 2, 1, 0, 0],
)


def value(statistic) -> float:
    return float(statistic(np.ones((1, 5)))[0])


def test_figures_are_those_of_the_table() -> None:
    assert value(measures.detected(HAND, 0.5)) == pytest.approx(2 / 3)
    assert value(measures.on_time(HAND, 0.5)) == pytest.approx(1 / 3)
    assert value(measures.tokens_seen(HAND, 0.5)) == pytest.approx((1 / 4 + 4 / 4) / 2)
    assert value(measures.false_alarms(HAND, 0.5)) == pytest.approx(1 / 2)
    # Of ten offending tokens three stay unwritten; of the five others none: its alarm came last.
    assert value(measures.saved_tokens(HAND, 0.5, offending=True)) == pytest.approx(3 / 10)
    assert value(measures.saved_tokens(HAND, 0.5, offending=False)) == 0
    assert value(measures.saved_tokens(HAND, 0.05, offending=False)) == pytest.approx(3 / 5)


def test_a_score_that_equals_the_threshold_flags() -> None:
    assert HAND.tokens_read(0.8).tolist() == [1, 4, 2, 3, 2]
    assert value(measures.detected(HAND, 0.8)) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("clean", "allowed", "flagged"),
    [([0.1, 0.2, 0.3, 0.4], 0.25, 1), ([0.1, 0.2, 0.3, 0.4], 0.0, 0), ([0.5] * 4, 0.25, 0),
     ([0.1, 0.2, 0.3, 0.4], 0.49, 1), ([0.1, 0.2], 1.0, 2)],
)  # fmt: skip
def test_the_threshold_never_flags_more_clean_texts_than_allowed(clean, allowed, flagged) -> None:
    scores = np.array([*clean, 0.9])
    offending = np.array([False] * len(clean) + [True])
    threshold = measures.threshold_at(scores, offending, allowed)
    assert (np.array(clean) >= threshold).sum() == flagged


@pytest.mark.parametrize(
    ("chosen", "rejected", "span"),
    [
        ("what a day", "what a damn day it is", "what a damn day it is"),
        ("what a day", "what a damn day", "what a damn"),
        ("do not lie", "do not shit lie to me", "do not shit lie to me"),
        ("the very same", "the same", "the same"),
    ],
)
def test_the_span_ends_with_the_last_word_that_the_clean_text_lacks(
    chosen: str, rejected: str, span: str
) -> None:
    clean, offending = texts_of_pairs([PreferencePair(chosen, rejected)])
    assert clean.end is None and rejected[: offending.end] == span
