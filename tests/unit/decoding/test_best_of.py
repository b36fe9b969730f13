"""Best of n against sampling and judging each continuation alone; blocks against every fork."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from otter_cli.core.errors import OtterError
from otter_cli.decoding.best_of import BestOf, best_of
from otter_cli.decoding.generate import generate
from otter_cli.decoding.sampling import Sampling
from otter_cli.model.otter import OtterForCausalLM
from tests.support.grafts import random_graft

PROMPTS = [[5, 9, 33, 40, 12], [7, 8]]
DRAWN = Sampling(max_new_tokens=9, temperature=0.9, seed=4, ignore_eos=True)


@pytest.fixture(scope="module")
def model(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("g") / "g"
    folder = random_graft(tiny_llama, out, hidden=8, heads=2, ffn=16, scale=0.2)
    return OtterForCausalLM.from_pretrained(folder, dtype=torch.float64)


@pytest.mark.parametrize("lowest", [False, True])
def test_the_best_of_whole_sequences_by_a_signal(model: Any, lowest: bool) -> None:
    got = best_of(model, PROMPTS, DRAWN, BestOf(n=4, signal="reward", lowest=lowest))
    for prompt, row in zip(PROMPTS, got, strict=True):
        alone = generate(model, [prompt] * 4, DRAWN, signals=("reward",))
        best = (min if lowest else max)(alone, key=lambda one: one.signals["reward"][-1])
        assert row.tokens == best.tokens
        assert len({tuple(one.tokens) for one in alone}) > 1
    assert got[0].counters.external_passes == 0 and got[0].counters.base_passes == 10


@pytest.mark.parametrize("end", [True, False])
def test_a_signal_is_read_at_the_end_token_or_before_it(
    model: Any, monkeypatch: pytest.MonkeyPatch, end: bool
) -> None:
    drawn = replace(DRAWN, ignore_eos=False)
    monkeypatch.setattr(model.generation_config, "eos_token_id", list(range(20, 40)))
    got = best_of(model, PROMPTS, drawn, BestOf(n=8, signal="reward", end=end))
    for prompt, row in zip(PROMPTS, got, strict=True):
        alone = generate(model, [prompt] * 8, drawn, signals=("reward",))
        assert any(one.finish == "eos" and len(one.tokens) > 1 for one in alone)
        kept = [
            one.tokens[:-1]
            if one.finish == "eos" and len(one.tokens) > 1 and not end
            else one.tokens
            for one in alone
        ]
        scores = [
            float(model(torch.tensor([prompt + text])).signals["reward"][0, -1]) for text in kept
        ]
        assert row.tokens == alone[scores.index(max(scores))].tokens


def test_the_best_by_a_reward_model(model: Any, tiny_llama: Path) -> None:
    torch.manual_seed(3)
    load = AutoModelForSequenceClassification.from_pretrained
    reward_model = load(tiny_llama, num_labels=1, dtype=torch.float64).eval()
    got = best_of(model, PROMPTS, DRAWN, BestOf(n=4, reward_model=reward_model))
    for prompt, row in zip(PROMPTS, got, strict=True):
        scores = {}
        for one in generate(model, [prompt] * 4, DRAWN):
            with torch.no_grad():
                state = reward_model.model(torch.tensor([prompt + one.tokens]))[0][0, -1]
                scores[tuple(one.tokens)] = float(reward_model.score(state)[0])
        assert tuple(row.tokens) == max(scores, key=lambda tokens: scores[tokens])
    assert got[0].counters.external_passes == 1


def test_blocks_go_on_from_the_best_so_far(model: Any) -> None:
    """The first block is the best of n of that length, and signals stay those of the text."""
    request = BestOf(n=4, signal="reward", block=3)
    first = best_of(
        model, PROMPTS, Sampling(3, 0.9, seed=4, ignore_eos=True), BestOf(n=4, signal="reward")
    )
    for short, row in zip(first, best_of(model, PROMPTS, DRAWN, request), strict=True):
        assert row.tokens[:3] == short.tokens and len(row.tokens) == 9
    (row,) = best_of(model, PROMPTS[:1], DRAWN, request)
    with torch.no_grad():
        expected = model(torch.tensor([PROMPTS[0] + row.tokens])).signals["reward"][0, 5:]
    torch.testing.assert_close(
        torch.tensor(row.signals["reward"], dtype=torch.float64), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("request_", "sampling", "words"),
    [
        (BestOf(n=4), DRAWN, "one judge"),
        (BestOf(n=0, signal="reward"), DRAWN, "best of 0"),
        (BestOf(n=2, signal="reward"), Sampling(), "equal texts"),
        (BestOf(n=2, signal="future"), DRAWN, "predicts tokens"),
    ],
    ids=["no judge", "none", "greedy", "no score"],
)
def test_what_has_no_best(model: Any, request_: BestOf, sampling: Sampling, words: str) -> None:
    with pytest.raises(OtterError, match=words):
        best_of(model, PROMPTS, sampling, request_)
