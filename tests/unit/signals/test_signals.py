"""Signals: how they are written, and that heads are linear in [y ; v], as docs/method.md says."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from otter_cli.core.errors import OtterError
from otter_cli.signals.config import SignalConfig, parse_signal
from otter_cli.signals.heads import HEADS, HeadInputs


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("reward", SignalConfig(name="reward", kind="value")),
        ("value", SignalConfig(name="value", kind="value")),
        ("polite=reward", SignalConfig(name="polite", kind="value")),
        (
            "value:helpful,kind",
            SignalConfig(name="value", kind="value", size=2, labels=("helpful", "kind")),
        ),
        ("toxicity", SignalConfig(name="toxicity", kind="classes", labels=("toxicity",))),
        (
            "classes:2",
            SignalConfig(name="classes", kind="classes", size=2, labels=("class_0", "class_1")),
        ),
        (
            "mod=classes:insult,threat",
            SignalConfig(name="mod", kind="classes", size=2, labels=("insult", "threat")),
        ),
        ("future", SignalConfig(name="future", kind="future", size=3, width=None)),
        ("draft=future:5", SignalConfig(name="draft", kind="future", size=5, width=None)),
        ("future:4,512", SignalConfig(name="future", kind="future", size=4, width=512)),
        ("future:3,plain", SignalConfig(name="future", kind="future", size=3)),
        ("action-reward", SignalConfig(name="action-reward", kind="vocabulary", size=64)),
        ("q=vocabulary:8", SignalConfig(name="q", kind="vocabulary", size=8)),
        ("q=action-reward:full", SignalConfig(name="q", kind="vocabulary", size=0)),
    ],
)
def test_what_a_signal_may_be_called(text: str, expected: SignalConfig) -> None:
    assert parse_signal(text) == expected


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("rewrd", "reward"),
        ("x=futur:3", "future"),
        ("future:0", "future:0"),
        ("future:a,b", "'b'"),
        ("future:a", "'a'"),
        ("future:3,0", "'0'"),
        ("future:3,plain,2", "plain,2"),
        ("classes:a,a", "a,a"),
        ("Big=reward", "Big"),
        ("", "kind"),
        ("classes:a,", "a,"),
        ("vocabulary:wide", "wide"),
        ("vocabulary:0", "vocabulary:0"),
    ],
)
def test_bad_signals_are_named(text: str, names: str) -> None:
    with pytest.raises(OtterError) as caught:
        parse_signal(text)
    assert names in caught.value.what + caught.value.hint


class Rows:
    """A frozen output matrix [vocab, d], whose logits are the product alone."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    def product(self, state: Tensor) -> Tensor:
        return state @ self.matrix.T

    logits = product

    def rows(self, tokens: Tensor) -> Tensor:
        return self.matrix[tokens]


def random_weights(signal: SignalConfig, *sizes: int) -> dict[str, Tensor]:
    shapes = HEADS[signal.kind].shapes(signal, *sizes)
    return {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}


@pytest.mark.parametrize("inserted", [0, 3])
@pytest.mark.parametrize("text", ["reward", "value:a,b", "toxicity", "classes:4", "future:2,plain"])
def test_heads_equal_one_product_of_the_concatenation(text: str, inserted: int) -> None:
    signal, d, vocab = parse_signal(text), 5, 11
    torch.manual_seed(0)
    weights = random_weights(signal, d, inserted, vocab)
    y = torch.randn(2, 7, d, dtype=torch.float64)
    v = torch.randn(2, 7, inserted, dtype=torch.float64)
    unembedding = torch.randn(vocab, d, dtype=torch.float64)

    got = HEADS[signal.kind].forward(HeadInputs(signal, weights, y, v, Rows(unembedding)))

    joint = torch.cat([weights["base"], weights["inserted"]], -1) if inserted else weights["base"]
    linear = torch.cat([y, v], -1) @ joint.T + weights["bias"]
    if signal.kind == "future":
        heads = [y + F.silu(block) for block in linear.split(d, -1)]
        expected = torch.stack([head @ unembedding.T for head in heads], -2)
    else:
        expected = linear[..., 0] if text == "reward" else linear
    assert got.shape == expected.shape
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_an_untrained_future_head_drafts_the_next_token_again() -> None:
    signal = parse_signal("future:2,plain")
    weights = {n: torch.zeros(s) for n, s in HEADS["future"].shapes(signal, 4, 2, 9).items()}
    y, unembedding = torch.randn(1, 3, 4), torch.randn(9, 4)
    v = torch.randn(1, 3, 2)
    got = HEADS["future"].forward(HeadInputs(signal, weights, y, v, Rows(unembedding)))
    for head in range(2):
        torch.testing.assert_close(got[:, :, head], y @ unembedding.T)
