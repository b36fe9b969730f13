"""Every guide against the plain loop of its paper: no cache, no batch, one forward each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from otter_cli.core.errors import OtterError
from otter_cli.decoding.bounds import Gate, SignalBound, parse_gate
from otter_cli.decoding.generate import generate
from otter_cli.decoding.guides.external_models import (
    ArgsGuide,
    DExpertsGuide,
    GenArmGuide,
    RadGuide,
)
from otter_cli.decoding.guides.signal_guides import SignalGuide, VocabularyGuide
from otter_cli.decoding.sampling import Sampler, Sampling
from otter_cli.model.otter import OtterForCausalLM
from tests.support.checkpoints import fill_with_noise
from tests.support.grafts import random_graft

PROMPTS = [[5, 9, 33, 40, 12], [7, 8], [60, 61, 62, 63, 64, 65, 66]]
GREEDY = Sampling(max_new_tokens=10, ignore_eos=True)
DRAWN = Sampling(max_new_tokens=10, temperature=0.8, seed=4, ignore_eos=True)
SIGNALS = ("reward", "toxicity", "action-reward", "full=action-reward:full")
Naive = Callable[[list[int]], tuple[torch.Tensor, torch.Tensor]]


@pytest.fixture(scope="module")
def model(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("g") / "g"
    sizes = {"hidden": 8, "heads": 2, "ffn": 16, "scale": 0.2}
    folder = random_graft(tiny_llama, out, signals=SIGNALS, **sizes)
    return OtterForCausalLM.from_pretrained(folder, dtype=torch.float64)


@pytest.fixture(scope="module")
def reward_model(tiny_llama: Path) -> Any:
    torch.manual_seed(3)
    load = AutoModelForSequenceClassification.from_pretrained
    found = load(tiny_llama, num_labels=1, dtype=torch.float64).eval()
    torch.nn.init.normal_(found.score.weight, std=0.3)
    return found


@pytest.fixture(scope="module")
def experts(tiny_llama: Path) -> list[Any]:
    found = []
    for seed in (11, 12):
        expert = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float64).eval()
        fill_with_noise(expert, seed)
        found.append(expert)
    return found


def _logits(model: Any, text: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([text])).logits[0, -1]


def _rewards(reward_model: Any, text: list[int], tokens: torch.Tensor) -> torch.Tensor:
    """At the last token. The stock class reads the last token that is not padding."""
    with torch.no_grad():
        states = [reward_model.model(torch.tensor([[*text, int(token)]]))[0] for token in tokens]
        return torch.stack([reward_model.score(state[0, -1])[0] for state in states])


def _naive(
    candidates: Naive, sampling: Sampling, prompts: list[list[int]] = PROMPTS
) -> list[list[int]]:
    """`candidates(text)` gives ids and scores; the choice: argmax, or by one uniform number."""
    sampler = Sampler(sampling, prompts, torch.device("cpu"))
    found = []
    for row, prompt in enumerate(prompts):
        text = list(prompt)
        for _ in range(sampling.max_new_tokens):
            ids, scores = candidates(text)
            if sampler.greedy:
                at = int(scores.argmax())
            else:
                uniform = torch.rand((), generator=sampler.generators[row], dtype=torch.float64)
                cumulative = (scores / sampling.temperature).softmax(-1).cumsum(-1)
                at = int((cumulative <= uniform * cumulative[-1]).sum())
            text.append(int(ids[at]))
        found.append(text[len(prompt) :])
    return found


def _tokens(model: Any, sampling: Sampling, **options: Any) -> list[list[int]]:
    return [row.tokens for row in generate(model, PROMPTS, sampling, **options)]


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "stochastic"])
def test_args(model: Any, reward_model: Any, sampling: Sampling) -> None:
    def naive(text: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        top = _logits(model.base, text).topk(6)
        return top.indices, top.values + 2.5 * _rewards(reward_model, text, top.indices)

    got = _tokens(model, sampling, guide=ArgsGuide(reward_model, 2.5, 6))
    assert got == _naive(naive, sampling) != _tokens(model, sampling)


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_rad(model: Any, reward_model: Any, sampling: Sampling) -> None:
    def naive(text: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        logits = _logits(model.base, text)
        top = logits.topk(5)
        steered = torch.full_like(logits, -torch.inf)
        clipped = _rewards(reward_model, text, top.indices).clip(0, 1)
        steered[top.indices] = top.values + 6 * clipped
        order = steered.argsort(descending=True)[:5] if sampling is GREEDY else top.indices
        return order, steered[order]

    got = _tokens(model, sampling, guide=RadGuide(reward_model, 6.0, 5))
    assert got == _naive(naive, sampling) != _tokens(model, sampling)


@pytest.mark.parametrize("which", ["both", "expert", "anti-expert"])
def test_dexperts_and_its_halves(model: Any, experts: list[Any], which: str) -> None:
    good, bad = experts
    if which != "both":
        good, bad = (good, None) if which == "expert" else (None, bad)

    def naive(text: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        base = _logits(model.base, text)
        order = base.argsort(descending=True)
        cumulative = base.softmax(-1)[order].cumsum(-1)
        out = order[1:][cumulative[:-1] >= 0.8]
        plus, minus = (base if one is None else _logits(one, text) for one in (good, bad))
        steered = base + 1.5 * (plus - minus)
        steered[out] = -torch.inf
        return torch.arange(len(base)), steered

    for sampling in (GREEDY, DRAWN):
        got = _tokens(model, sampling, guide=DExpertsGuide(good, bad, 1.5, top_p=0.8))
        assert got == _naive(naive, sampling) != _tokens(model, sampling)


def test_genarm(model: Any, experts: list[Any]) -> None:
    def naive(text: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        base, rewards = _logits(model.base, text), _logits(experts[0], text).log_softmax(-1)
        return torch.arange(len(base)), base.log_softmax(-1) + 0.7 * rewards

    rows = generate(model, PROMPTS, GREEDY, guide=GenArmGuide(experts[0], 0.7))
    assert [row.tokens for row in rows] == _naive(naive, GREEDY) != _tokens(model, GREEDY)
    # The prompt's pass, and one for each token but the last.
    assert rows[0].counters.external_passes == 10 and rows[0].counters.external_passes == 10


@pytest.mark.parametrize("signal", ["action-reward", "full"])
@pytest.mark.parametrize("candidates", [6, 0], ids=["top 6", "whole vocabulary"])
def test_action_values_cost_no_pass(model: Any, signal: str, candidates: int) -> None:
    def naive(text: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            out = model(torch.tensor([text]))
        top = out.logits[0, -1].topk(candidates or 97)
        return top.indices, top.values + 3 * out.signals[signal][0, -1][top.indices]

    rows = generate(model, PROMPTS, GREEDY, guide=VocabularyGuide(signal, 3.0, candidates))
    assert [row.tokens for row in rows] == _naive(naive, GREEDY) != _tokens(model, GREEDY)
    assert rows[0].counters.base_passes == 10 and rows[0].counters.external_passes == 0
    assert rows[0].counters.tokens_fed == sum(map(len, [PROMPTS[2]] * 3)) + 3 * 9


def test_several_guides_with_weights_for_each_request(model: Any, reward_model: Any) -> None:
    weights = ((2.0, 0.0, -1.0), (1.5, 0.0, 3.0))

    def naive(row: int) -> Naive:
        def steered(text: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
            top = _logits(model.base, text).topk(5)
            with torch.no_grad():
                q = model(torch.tensor([text])).signals["action-reward"][0, -1][top.indices]
                v = torch.stack(
                    [
                        model(torch.tensor([[*text, int(t)]])).signals["reward"][0, -1]
                        for t in top.indices
                    ]
                )
            return top.indices, top.values + weights[0][row] * v + weights[1][row] * q

        return steered

    guides = [SignalGuide("reward", weights[0], 5), VocabularyGuide("action-reward", weights[1], 8)]
    got = _tokens(model, GREEDY, guide=guides)
    for row, prompt in enumerate(PROMPTS):
        assert got[row] == _naive(naive(row), GREEDY, [prompt])[0]
    assert got[1] == _tokens(model, GREEDY)[1]


GATES = [
    Gate(entropy=3.0),
    Gate(top_probability=0.25),
    Gate(signal=SignalBound("reward", 0.0)),
    Gate(signal=SignalBound("toxicity", 0.5, above=False)),
]


@pytest.mark.parametrize("gate", GATES, ids=str)
def test_a_gate_opens_by_what_it_names(model: Any, reward_model: Any, gate: Gate) -> None:
    def is_open(text: list[int]) -> bool:
        with torch.no_grad():
            out = model(torch.tensor([text]))
        p = out.logits[0, -1].softmax(-1)
        if gate.entropy is not None:
            return float(-(p * p.log()).sum()) > gate.entropy
        if gate.top_probability is not None:
            return float(p.max()) < gate.top_probability
        assert gate.signal is not None
        if gate.signal.signal == "reward":
            return float(out.signals["reward"][0, -1]) > 0
        return float(out.signals["toxicity"][0, -1, 0].sigmoid()) < 0.5

    opened = []

    def naive(text: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        logits = _logits(model.base, text)
        opened.append(is_open(text))
        if not opened[-1]:
            return torch.arange(97), logits
        top = logits.topk(5)
        return top.indices, top.values + 3 * _rewards(reward_model, text, top.indices)

    for sampling in (GREEDY, DRAWN):
        got = _tokens(model, sampling, guide=ArgsGuide(reward_model, 3.0, 5), gate=gate)
        assert got == _naive(naive, sampling)
    assert {True, False} == set(opened)


def test_bounds_are_read_as_they_are_written() -> None:
    gate = parse_gate(["entropy>1.5", "p<0.6", "tone.rude<0.25"])
    assert gate == Gate(1.5, 0.6, SignalBound("tone", 0.25, False, "rude"))
    assert str(gate.signal) == "tone.rude<0.25" and parse_gate([]) is None
    for wrong in ("entropy", "entropy<1", "p>0.5", "x>y", ">1"):
        with pytest.raises(OtterError):
            parse_gate([wrong])


@pytest.mark.parametrize(
    ("guide", "words"),
    [
        (SignalGuide("reward", 1.0, 0), "0 candidates"),
        (VocabularyGuide("reward", 1.0), "no action values"),
        (SignalGuide("action-reward", 1.0), "could come"),
        (SignalGuide("reward", (1.0, 2.0)), "2 strengths"),
        (DExpertsGuide(None, None, 1.0), "neither"),
    ],
)
def test_guides_that_cannot_be(model: Any, guide: Any, words: str) -> None:
    with pytest.raises(OtterError, match=words):
        generate(model, PROMPTS, GREEDY, guide=guide)


def test_an_expert_of_another_vocabulary_is_refused(model: Any, tiny_checkpoint: Any) -> None:
    other = AutoModelForCausalLM.from_pretrained(tiny_checkpoint("llama", vocab_size=101))
    for guide in (GenArmGuide(other, 1.0), DExpertsGuide(other, None, 1.0)):
        with pytest.raises(OtterError, match="vocabulary has 101 tokens"):
            generate(model, PROMPTS, GREEDY, guide=guide)


@pytest.mark.parametrize("candidates", [3, 10])
def test_logits_are_computed_for_the_winner_alone(model: Any, candidates: int) -> None:
    """Every product over the vocabulary is over one position a row, however many were fed."""
    seen: list[tuple[int, ...]] = []
    head = model.base.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    try:
        rows = generate(model, PROMPTS, GREEDY, guide=SignalGuide("reward", 1.0, candidates))
    finally:
        handle.remove()
    assert rows[0].counters.tokens_fed > 10 * len(PROMPTS) * candidates
    assert seen == [(len(PROMPTS), 1, model.shape.hidden)] * 10
