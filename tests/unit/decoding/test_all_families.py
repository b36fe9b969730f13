"""Candidates, drafts and trees on every family that takes a full insertion, windowed ones too."""

from pathlib import Path
from typing import Any

import pytest
import torch

from otter_cli.decoding.kv_session import HiddenStates
from otter_cli.decoding.session import DecodingSession
from otter_cli.model.otter import OtterForCausalLM
from tests.support.families import FULL, Case
from tests.support.grafts import random_graft

PROMPTS = [[5, 9, 33, 40, 12], [7, 8]]


def _alone(model: Any, tokens: list[int]) -> HiddenStates:
    """The last state of a text by one plain forward: no cache, no padding."""
    with torch.no_grad():
        out = model(torch.tensor([tokens]), signals=(), logits=False)
    return HiddenStates(out.base_state, out.inserted_state).last()


def _close(
    session: DecodingSession, states: HiddenStates, row: int, expected: HiddenStates
) -> None:
    got = HiddenStates(
        states.base[row, None], {n: v[row, None] for n, v in states.inserted.items()}
    )
    for name in ("reward", "future"):
        torch.testing.assert_close(
            session.read(name, got), session.read(name, expected), rtol=1e-3, atol=1e-3
        )
    torch.testing.assert_close(session.logits(got), session.logits(expected), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("length", [None, 64], ids=["grown", "preallocated"])
@pytest.mark.parametrize("case", FULL, ids=str)
def test_a_choice_then_a_draft_are_the_text_recomputed(
    tiny_checkpoint: Any, tmp_path: Path, case: Case, length: int | None
) -> None:
    folder = random_graft(case.write(tiny_checkpoint), tmp_path / "g", hidden=8, heads=2, ffn=16)
    attention = "eager" if case.eager_only else "sdpa"
    model = OtterForCausalLM.from_pretrained(folder, attn_implementation=attention)
    session = DecodingSession(model, length=length)
    session.prefill(PROMPTS)
    candidates, chain = torch.tensor([[3, 50, 17], [4, 51, 18]]), torch.tensor([[30, 31], [40, 41]])
    states = session.extend_candidates(candidates)
    for row, prompt in enumerate(PROMPTS):
        for k in range(3):
            chosen = states.select(torch.full((2,), k))
            _close(session, chosen, row, _alone(model, [*prompt, int(candidates[row, k])]))
    session.keep_candidate(torch.tensor([2, 1]))
    session.extend(chain)
    session.keep(torch.tensor([1, 2]))
    states = session.step(torch.tensor([60, 61]))
    texts = [*PROMPTS[0], 17, 30, 60], [*PROMPTS[1], 51, 40, 41, 61]
    for row, text in enumerate(texts):
        _close(session, states, row, _alone(model, text))
    # Past every window: a tree of two levels, of which the second row keeps one token.
    tree = torch.tensor([[70, 71, 72, 73], [80, 81, 82, 83]])
    grown = session.extend_tree(tree, [-1, -1, 1, 1])
    for row, text in enumerate(texts):
        _close(
            session,
            grown.select(torch.tensor([3, 3])),
            row,
            _alone(model, [*text, *tree[row, [1, 3]]]),
        )
    session.keep_path(torch.tensor([[1, 3], [0, 0]]), torch.tensor([2, 1]))
    states = session.step(torch.tensor([62, 63]))
    for row, text in enumerate(([*texts[0], 71, 73, 62], [*texts[1], 80, 63])):
        _close(session, states, row, _alone(model, text))
