"""Action values: one state scores every token, and candidates alone get the same scores."""

import pytest
import torch

from otter_cli.signals.config import parse_signal
from otter_cli.signals.heads import HeadInputs, VocabularyHead
from tests.unit.signals.test_signals import Rows, random_weights

HEAD, d, VOCAB = VocabularyHead(), 6, 13
FORMS = ("vocabulary:2", "vocabulary", "vocabulary:full")


def _case(text: str, inserted: int) -> HeadInputs:
    torch.manual_seed(0)
    signal = parse_signal(text)
    weights = random_weights(signal, d, inserted, VOCAB)
    y = torch.randn(2, 5, d, dtype=torch.float64)
    v = torch.randn(2, 5, inserted, dtype=torch.float64) if inserted else None
    return HeadInputs(signal, weights, y, v, Rows(torch.randn(VOCAB, d, dtype=torch.float64)))


@pytest.mark.parametrize("inserted", [0, 3])
@pytest.mark.parametrize("text", FORMS)
def test_every_token_is_scored_as_the_formula_says(text: str, inserted: int) -> None:
    case = _case(text, inserted)
    _, weights, y, v, rows = case
    s = torch.cat([y, v], -1) if inserted else y

    def whole(part: str) -> torch.Tensor:
        halves = [weights[f"{part}base"]]
        return torch.cat(halves + ([weights[f"{part}inserted"]] if inserted else []), -1)

    expected = torch.empty(2, 5, VOCAB, dtype=torch.float64)
    for token in range(VOCAB):
        if text.endswith("full"):
            expected[..., token] = s @ whole("")[token] + weights["bias"][token]
        else:
            W = weights["factor_out"] @ whole("factor_")
            expected[..., token] = (
                s @ whole("")[0] + weights["bias"] + (s @ W.T) @ rows.matrix[token]
            )
    torch.testing.assert_close(HEAD.forward(case), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("inserted", [0, 3])
@pytest.mark.parametrize("text", FORMS)
def test_candidates_are_scored_as_among_all_tokens(text: str, inserted: int) -> None:
    case = _case(text, inserted)
    tokens = torch.randint(VOCAB, (2, 5, 4), generator=torch.Generator().manual_seed(1))
    expected = HEAD.forward(case).gather(-1, tokens)
    torch.testing.assert_close(HEAD.score_tokens(case, tokens), expected, rtol=1e-12, atol=1e-12)


def test_a_rank_beyond_the_width_is_the_width() -> None:
    shapes = HEAD.shapes(parse_signal("vocabulary:999"), d, 3, VOCAB)
    assert shapes["factor_out"] == (d, d)


@pytest.mark.parametrize("text", FORMS)
def test_the_cost_is_that_of_the_tensors(text: str) -> None:
    """Every weight but a bias costs one multiply-add, and the frozen row of a token d more."""
    signal, inserted = parse_signal(text), 3
    cost = HEAD.cost(signal, d, inserted)
    shapes = HEAD.shapes(signal, d, inserted, VOCAB)
    weights = sum(torch.Size(shape).numel() for n, shape in shapes.items() if n != "bias")
    frozen = 0 if text.endswith("full") else VOCAB * d
    assert cost.shared + VOCAB * cost.each == weights + frozen
