"""Bounds on a signal, as `--reject`, `reject=` and `stop_when` write them."""

import pytest
import torch

from otter_cli.decoding.bounds import SignalBound, parse_signal_bound


@pytest.mark.parametrize(
    ("text", "crossed"),
    [
        ("reward>0.5", [False, False, True]),
        ("reward>=0.5", [False, True, True]),
        ("reward < 0.5", [True, False, False]),
        ("reward<=0.5", [True, True, False]),
    ],
)
def test_a_bound_is_crossed_at_its_number_only_with_an_equals_sign(
    text: str, crossed: list[bool]
) -> None:
    bound = parse_signal_bound(text)
    assert bound.crossed(torch.tensor([0.25, 0.5, 0.75])).tolist() == crossed
    assert str(bound) == text.replace(" ", "")


@pytest.mark.parametrize("text", ["tone.rude>=0.5", "tone/rude>=0.5"])
def test_a_bound_names_a_label(text: str) -> None:
    assert parse_signal_bound(text) == SignalBound("tone", 0.5, True, "rude", inclusive=True)
