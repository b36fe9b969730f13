"""The cell of future tokens equals the written-out formula, and older files keep their heads."""

import pytest
import torch
from torch import Tensor

from otter_cli.signals.config import SignalConfig, parse_signal
from otter_cli.signals.heads import HEADS, FutureHead, HeadInputs
from tests.unit.signals.test_signals import Rows, random_weights

D, VOCAB, N = 6, 13, 3


def rms_normed(x: Tensor) -> Tensor:
    return x / (x.pow(2).mean() + 1e-6).sqrt()


def by_formula(
    w: dict[str, Tensor], y: Tensor, v: Tensor, e: Tensor, known: list[int]
) -> tuple[list[Tensor], list[int]]:
    """The logits of each head at one position, and the token before each."""
    state, said, after = y, y @ e.T, []
    logits = []
    columns = [w["cell_base"], w["cell_token"], *([w["cell_inserted"]] if v.numel() else [])]
    for head in range(N):
        token = known[head] if head < len(known) else int(said.argmax())
        after.append(token)
        joined = torch.cat([rms_normed(state), rms_normed(e[token]), v])
        gate, up = (torch.cat(columns, -1) @ joined + w["cell_bias"]).split(
            len(w["cell_bias"]) // 2
        )
        state = state + w["cell_out"] @ (gate * torch.sigmoid(gate) * up)
        said = state @ e.T
        logits.append(said)
    return logits, after


@pytest.mark.parametrize("inserted", [0, 2])
@pytest.mark.parametrize("given", [0, 1, N])
def test_a_cell_follows_the_tokens_given_and_then_its_own(inserted: int, given: int) -> None:
    torch.manual_seed(0)
    signal = parse_signal(f"future:{N},4")
    weights = random_weights(signal, D, inserted, VOCAB)
    y, v = torch.randn(2, 5, D).double(), torch.randn(2, 5, inserted).double()
    e, known = torch.randn(VOCAB, D).double(), torch.randint(VOCAB, (2, 5, given))
    head = HEADS["future"]
    assert isinstance(head, FutureHead)
    inputs = HeadInputs(signal, weights, y, v if inserted else None, Rows(e))
    got = head.continue_from(inputs, known)
    if not given:
        free = head.forward(inputs)
        torch.testing.assert_close(free, got, rtol=0, atol=0)
    paths = set()
    for row in range(2):
        for at in range(5):
            logits, after = by_formula(weights, y[row, at], v[row, at], e, known[row, at].tolist())
            torch.testing.assert_close(got[row, at], torch.stack(logits), rtol=1e-10, atol=1e-10)
            paths.add(tuple(after))
    # Paths differ between positions, so the tokens were really read.
    assert len(paths) > 5


def test_a_new_cell_repeats_the_base() -> None:
    """Its output is zero, and other tensors are random."""
    signal = parse_signal("future:2,4")
    weights = random_weights(signal, D, 2, VOCAB)
    kept = {
        n: w if n in FutureHead.random_tensors else torch.zeros_like(w) for n, w in weights.items()
    }
    y, v, e = torch.randn(3, D).double(), torch.randn(3, 2).double(), torch.randn(VOCAB, D).double()
    got = HEADS["future"].forward(HeadInputs(signal, kept, y, v, Rows(e)))
    for head in range(2):
        torch.testing.assert_close(got[:, head], y @ e.T)


def test_an_older_file_s_heads_are_what_they_were() -> None:
    """otter.json of older versions has no width."""
    old = SignalConfig.model_validate({"name": "f", "kind": "future", "size": 2, "labels": []})
    shapes = HEADS["future"].shapes(old, D, 2, VOCAB)
    assert shapes == {"base": (2 * D, D), "bias": (2 * D,), "inserted": (2 * D, 2)}


def test_a_cell_is_as_wide_as_asked() -> None:
    usual, wide = (
        HEADS["future"].shapes(parse_signal(t), D, 2, VOCAB) for t in ("future:9", "future:1,7")
    )
    assert usual["cell_out"] == (D, 2 * D) and wide["cell_out"] == (D, 7)
    assert wide["cell_inserted"] == (14, 2) and wide["cell_bias"] == (14,)


def test_a_draft_costs_a_step_and_a_product_over_the_vocabulary() -> None:
    head = HEADS["future"]
    assert isinstance(head, FutureHead)
    step = 2 * 7 * (D + D + 2) + D * 7
    assert head.draft_cost(parse_signal("future:3,7"), D, 2, VOCAB) == step + VOCAB * D
    assert head.draft_cost(parse_signal("future:3,plain"), D, 2, VOCAB) == D * (D + 2) + VOCAB * D
