"""Generation against transformers' own, guidance against a naive loop, and lossless drafts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from otter_cli.decoding.generate import generate
from otter_cli.decoding.guides.external_models import ArgsGuide
from otter_cli.decoding.guides.signal_guides import SignalGuide
from otter_cli.decoding.sampling import Sampler, Sampling
from otter_cli.decoding.speculative.drafters import FutureDrafter, PromptLookup
from otter_cli.decoding.speculative.drafts import TreeShape
from otter_cli.model.otter import OtterForCausalLM
from tests.support.grafts import random_graft

PROMPTS = [[5, 9, 33, 40, 12], [7, 8], [60, 61, 62, 63, 64, 65, 66]]
DRAFTERS = [FutureDrafter(), FutureDrafter(tree=TreeShape.of_widths([3, 2])), PromptLookup(2, 3)]
GREEDY = Sampling(max_new_tokens=20, ignore_eos=True)
DRAWN = Sampling(max_new_tokens=20, temperature=0.9, top_k=40, top_p=0.95, seed=4, ignore_eos=True)


@pytest.fixture(scope="module")
def model(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = random_graft(
        tiny_llama, tmp_path_factory.mktemp("g") / "g", hidden=8, heads=2, ffn=16, scale=0.2
    )
    return OtterForCausalLM.from_pretrained(folder, dtype=torch.float64)


@pytest.fixture(scope="module")
def reward_model(tiny_llama: Path) -> Any:
    torch.manual_seed(3)
    return AutoModelForSequenceClassification.from_pretrained(
        tiny_llama, num_labels=1, dtype=torch.float64
    ).eval()


def _theirs(model: Any, prompt: list[int], count: int, **options: Any) -> list[int]:
    out = model.base.generate(
        torch.tensor([prompt]), max_new_tokens=count, do_sample=False, **options
    )
    return out[0, len(prompt) :].tolist()


def test_plain_greedy_is_transformers_own(model: Any) -> None:
    got = generate(model, PROMPTS, GREEDY)
    for prompt, row in zip(PROMPTS, got, strict=True):
        assert row.tokens == _theirs(model, prompt, 20, eos_token_id=[])
        assert row.finish == "length" and row.counters.base_passes == 20


@pytest.mark.parametrize("name", ["stories260K", "chat-7m"])
def test_plain_greedy_on_real_checkpoints_ends_where_theirs_does(
    shared: Path, tmp_path: Path, name: str
) -> None:
    folder = random_graft(shared / "models" / name, tmp_path / "g", hidden=8, heads=1, ffn=8)
    model = OtterForCausalLM.from_pretrained(folder)
    for prompt in ([1, 100, 200, 300], [1, 50, 60]):
        (got,) = generate(model, [prompt], Sampling(max_new_tokens=48))
        assert got.tokens == _theirs(model, prompt, 48)


def test_logprobs_are_the_base_s(model: Any) -> None:
    (row,) = generate(model, PROMPTS[:1], DRAWN)
    text = torch.tensor([PROMPTS[0] + row.tokens])
    with torch.no_grad():
        logprobs = model.base(text).logits.log_softmax(-1)
    expected = logprobs[0, 4:-1].gather(-1, text[0, 5:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(row.logprobs), expected.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("guide", [None, SignalGuide("reward", 1.0, 5)])
def test_signals_are_those_of_the_text_so_far(model: Any, guide: Any) -> None:
    (row,) = generate(model, PROMPTS[:1], GREEDY, guide=guide, signals=("reward", "toxicity"))
    with torch.no_grad():
        out = model(torch.tensor([PROMPTS[0] + row.tokens]))
    for name, expected in (
        ("reward", out.signals["reward"][0, 5:]),
        ("toxicity", out.signals["toxicity"][0, 5:, 0].sigmoid()),
    ):
        got = torch.tensor(row.signals[name], dtype=torch.float64)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_strength_zero_is_plain_decoding(model: Any, sampling: Sampling) -> None:
    plain = generate(model, PROMPTS, sampling)
    zero = generate(model, PROMPTS, sampling, guide=SignalGuide("reward", 0.0))
    assert [row.tokens for row in zero] == [row.tokens for row in plain]
    assert [row.logprobs for row in zero] == [row.logprobs for row in plain]
    assert zero[0].counters.tokens_fed == plain[0].counters.tokens_fed


def _naive(model: Any, prompt: list[int], reward: Any, strength: float, k: int) -> list[int]:
    """Guided greedy decoding in its plainest form: no cache, one forward a candidate."""
    text = list(prompt)
    with torch.no_grad():
        for _ in range(GREEDY.max_new_tokens):
            top = model.base(torch.tensor([text])).logits[0, -1].topk(k)
            scores = [
                logit + strength * reward([*text, token])
                for logit, token in zip(top.values.tolist(), top.indices.tolist(), strict=True)
            ]
            text.append(top.indices[scores.index(max(scores))].item())
    return text[len(prompt) :]


@pytest.mark.parametrize(("name", "strength"), [("reward", 2.0), ("toxicity", -8.0)])
def test_guidance_is_the_naive_loop_s(model: Any, name: str, strength: float) -> None:
    def reward(text: list[int]) -> float:
        signal = model(torch.tensor([text])).signals[name][0, -1]
        return float(signal if name == "reward" else signal[0].sigmoid())

    got = generate(model, PROMPTS, GREEDY, guide=SignalGuide(name, strength, 6))
    plain = generate(model, PROMPTS, GREEDY)
    for prompt, row in zip(PROMPTS, got, strict=True):
        assert row.tokens == _naive(model, prompt, reward, strength, 6)
    assert [row.tokens for row in got] != [row.tokens for row in plain]
    # One pass for the prompt, then one for the candidates of each token.
    assert got[0].counters.base_passes == 21 and got[0].counters.external_passes == 0


def test_ending_a_text_leaves_a_value_as_it_is_where_no_end_was_learnt(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = generate(model, PROMPTS, GREEDY, guide=SignalGuide("reward", 2.0, 6))
    ends = read[0].tokens[:2]  # were chosen by their own value, which now is not read
    monkeypatch.setattr(model.generation_config, "eos_token_id", ends)

    def reward(text: list[int]) -> float:
        known = text[:-1] if text[-1] in ends else text
        return float(model(torch.tensor([known])).signals["reward"][0, -1])

    got = generate(model, PROMPTS, GREEDY, guide=SignalGuide("reward", 2.0, 6, end=False))
    for prompt, row in zip(PROMPTS, got, strict=True):
        assert row.tokens == _naive(model, prompt, reward, 2.0, 6)
    assert [row.tokens for row in got] != [row.tokens for row in read]


def test_args_is_the_naive_loop_s(model: Any, reward_model: Any) -> None:
    def reward(text: list[int]) -> float:
        return float(reward_model(torch.tensor([text])).logits[0, 0])

    got = generate(model, PROMPTS, GREEDY, guide=ArgsGuide(reward_model, 3.0, 6))
    for prompt, row in zip(PROMPTS, got, strict=True):
        assert row.tokens == _naive(model, prompt, reward, 3.0, 6)
    # Passes of the reward model: the prompt's, and one for each token. The base's last is not fed.
    assert got[0].counters.external_passes == 21 and got[0].counters.base_passes == 20


@pytest.mark.parametrize("drafter", DRAFTERS, ids=str)
def test_drafts_change_nothing_when_greedy(model: Any, drafter: Any) -> None:
    plain = generate(model, PROMPTS, GREEDY)
    drafted = generate(model, PROMPTS, GREEDY, drafter=drafter)
    assert [row.tokens for row in drafted] == [row.tokens for row in plain]
    assert [row.finish for row in drafted] == [row.finish for row in plain]
    for row in drafted:
        kept = sum(row.counters.accepted)
        assert kept <= sum(row.counters.drafted)
        assert 0 < len(row.tokens) - kept <= row.counters.base_passes - 1


def test_accepted_drafts_save_passes(model: Any) -> None:
    """Text that repeats itself: prompt lookup must find it."""
    prompt = [11, 12, 13, 14] * 6
    (row,) = generate(
        model, [prompt], Sampling(max_new_tokens=40, ignore_eos=True), drafter=PromptLookup()
    )
    (plain,) = generate(model, [prompt], Sampling(max_new_tokens=40, ignore_eos=True))
    assert row.tokens == plain.tokens
    assert row.counters.base_passes < plain.counters.base_passes
    assert sum(row.counters.accepted) > 0


def test_a_row_ends_at_its_eos_and_the_others_go_on(model: Any) -> None:
    plain = generate(model, PROMPTS, GREEDY)
    ending = plain[1].tokens[4]
    model.generation_config.eos_token_id, kept = [ending], model.generation_config.eos_token_id
    try:
        sampling = Sampling(max_new_tokens=20)
        for drafter in (None, PromptLookup(2, 3)):
            for row, full in zip(
                generate(model, PROMPTS, sampling, drafter=drafter), plain, strict=True
            ):
                stop = full.tokens.index(ending) + 1 if ending in full.tokens else 20
                assert row.tokens == full.tokens[:stop]
                assert row.finish == ("eos" if ending in full.tokens else "length")
                assert len(row.logprobs) == len(row.tokens)
    finally:
        model.generation_config.eos_token_id = kept


def test_what_else_is_in_the_batch_does_not_matter(model: Any) -> None:
    together = generate(model, [PROMPTS[0], PROMPTS[0], PROMPTS[1]], DRAWN)
    alone = [generate(model, [prompt], DRAWN)[0] for prompt in PROMPTS[:2]]
    assert together[0].tokens == alone[0].tokens
    assert together[2].tokens == alone[1].tokens
    assert together[0].tokens != together[1].tokens


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 1.0), (0, 0.7), (7, 0.8)])
def test_filters_are_transformers_own(top_k: int, top_p: float) -> None:
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(2)).double()
    sampling = Sampling(temperature=0.8, top_k=top_k, top_p=top_p)
    got = Sampler(sampling, [[1]] * 4, torch.device("cpu")).probabilities(logits)
    expected = logits / 0.8
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    torch.testing.assert_close(got, expected.softmax(-1))
