"""Attributes of one signal, each with a weight of its own in each request."""

from pathlib import Path
from typing import Any

import torch

from otter_cli.decoding.generate import generate
from otter_cli.decoding.guides.signal_guides import SignalGuide
from otter_cli.decoding.sampling import Sampling
from otter_cli.model.otter import OtterForCausalLM
from tests.support.grafts import random_graft

PROMPTS = [[5, 9, 33, 40, 12], [7, 8], [60, 61, 62]]
# Weights by prompt; the last prompt is unguided.
HELPFUL, HARMLESS = (2.0, -1.5, 0.0), (0.5, 3.0, 0.0)


def _by_hand(model: Any, text: list[int], weights: torch.Tensor) -> list[int]:
    """`logit + sum of weight * attribute` over five candidates: a forward for each, no cache."""
    said: list[int] = []
    with torch.no_grad():
        for _ in range(6):
            logits = model(torch.tensor([text + said])).logits[0, -1]
            best = logits.topk(5).indices
            values = [
                model(torch.tensor([[*text, *said, int(token)]])).signals["reward"][0, -1]
                for token in best
            ]
            steered = logits[best] + torch.stack(values) @ weights
            said.append(int(best[steered.argmax()]))
    return said


def test_each_prompt_has_its_own_weight_of_each_attribute(tiny_llama: Path, tmp_path: Path) -> None:
    folder = random_graft(
        tiny_llama, tmp_path / "g", scale=0.3, hidden=8, heads=2, ffn=16,
        signals=("reward:helpful,harmless",),
    )  # fmt: skip
    model = OtterForCausalLM.from_pretrained(folder, dtype=torch.float64)
    guides = [
        SignalGuide("reward", HELPFUL, 5, "helpful"),
        SignalGuide("reward", HARMLESS, 5, "harmless"),
    ]
    sampling = Sampling(max_new_tokens=6, ignore_eos=True)
    rows = generate(model, PROMPTS, sampling, guide=guides)
    weights = torch.tensor([HELPFUL, HARMLESS], dtype=torch.float64).T
    by_hand = [_by_hand(model, text, w) for text, w in zip(PROMPTS, weights, strict=True)]
    assert [row.tokens for row in rows] == by_hand
    plain = generate(model, PROMPTS, sampling)
    assert rows[0].tokens != plain[0].tokens and rows[1].tokens != plain[1].tokens
    assert rows[2].tokens == plain[2].tokens
    # One pass for all attributes: the prompts', then one for each token but the last.
    assert rows[0].counters.base_passes <= 1 + sampling.max_new_tokens
