"""What a request may ask of a served graft, and which requests are refused with a message."""

import math
from typing import Any

import pytest

from otter_cli.core.errors import OtterError
from otter_cli.serving.vllm.requests import GuideRequest, SignalOutputs, read_request
from otter_cli.signals.config import parse_signal

NUMBERS = SignalOutputs(
    parse_signal(text) for text in ("reward", "tone=classes:a,b", "q=vocabulary:4", "future:2")
)


def test_a_request_that_names_no_argument_of_ours_asks_for_nothing() -> None:
    assert read_request(None, NUMBERS) is None
    assert read_request({"kv_transfer_params": {}}, NUMBERS) is None


def test_a_signal_has_a_number_for_each_class_and_one_for_action_values() -> None:
    assert [(n.signal, n.label) for n in NUMBERS.outputs] == [
        ("reward", None), ("tone", "a"), ("tone", "b"), ("q", None),
    ]  # fmt: skip
    asked = read_request({"otter_signals": "q,tone"}, NUMBERS)
    assert asked is not None and asked.outputs == (3, 1, 2) and asked.guide is None


def test_numbers_come_with_log_probabilities_unless_these_are_declined() -> None:
    def silent(**more: Any) -> bool:
        asked = read_request({"otter_signals": "reward", **more}, NUMBERS)
        assert asked is not None
        return asked.without_logprobs

    assert not silent() and not silent(otter_logprobs=True)
    # A server reads JSON's false as a number.
    assert silent(otter_logprobs=False) and silent(otter_logprobs=0.0)


def test_strength_zero_is_no_guide() -> None:
    assert read_request({"otter_guide": "q", "otter_strength": 0}, NUMBERS) is None


def test_guides_have_one_strength_together_or_one_each() -> None:
    asked = read_request(
        {
            "otter_guide": "q",
            "otter_strength": "1.5",
            "otter_candidates": 0,
            "otter_top_below": 0.9,
        },
        NUMBERS,
    )
    assert asked is not None
    assert asked.guide == GuideRequest((("q", 1.5),), candidates=0, top_below=0.9)


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        ({"otter_signals": "rewart"}, "no signal 'rewart'", "did you mean 'reward'"),
        ({"otter_signals": "future"}, "predicts tokens", "otter generate"),
        ({"otter_signal": "reward"}, "no argument 'otter_signal'", "did you mean 'otter_signals'"),
        ({"otter_guide": "reward", "otter_strength": 1}, "cannot guide in this engine", "vLLM"),
        ({"otter_guide": "q", "otter_strength": "much"}, "otter_strength is 'much'", "a number"),
        ({"otter_guide": "q", "otter_strength": float("nan")}, "otter_strength is nan", "a number"),
        ({"otter_guide": "q", "otter_strength": [1, 2]}, "2 numbers for 1 guides", "one for each"),
        ({"otter_signals": "q", "otter_logprobs": "no"}, "otter_logprobs is 'no'", "true or false"),
        ({"otter_guide": "q", "otter_candidates": 1.5}, "otter_candidates is 1.5", "whole number"),
        ({"otter_guide": "q", "otter_candidates": -1}, "otter_candidates is -1", "whole number"),
        ({"otter_stop_when": "reward"}, "is no bound", "for example"),
        ({"otter_stop_when": "q>1"}, "'q' cannot end an answer", "value or class"),
        ({"otter_stop_when": "reward.no>1"}, "no label 'no'", "its labels"),
        ({"otter_stop_when": "reward<-9999"}, "is below -9999", "a higher bound"),
    ],
)
def test_what_has_no_meaning_is_named(
    arguments: dict[str, object], message: str, hint: str
) -> None:
    with pytest.raises(OtterError) as error:
        read_request(arguments, NUMBERS)
    assert message in error.value.what and hint in error.value.hint


def test_a_bound_compares_what_a_client_gets() -> None:
    """Of classes the probability. What is not finite ends an answer, and says why."""
    bounds = {"otter_stop_when": ["reward<=-1", "c.b>0.5"]}
    asked = read_request(bounds, SignalOutputs(map(parse_signal, ("reward", "c=classes:a,b"))))
    assert asked is not None and not asked.outputs
    reward, classes = asked.stops
    assert (reward.place, classes.place) == (0, 2)
    assert reward.ends(-1.0) and not reward.ends(-0.99)
    assert classes.ends(0.1) and not classes.ends(-0.1)
    for stop in asked.stops:
        assert all(stop.ends(number) for number in (None, math.nan, math.inf))
        assert stop.reason(math.nan).endswith("the signal is not finite")
    assert reward.ends(-math.inf) and not classes.ends(-math.inf)
    assert reward.reason(-2.0) == "reward<=-1"
