"""KL of drawn text, coherence, and the area under a front, each against a reckoning of its own."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from otter_cli.benchmarks.methods.specs import parse_methods
from otter_cli.benchmarks.options import Guidance
from otter_cli.benchmarks.runner.run_benchmark import FinishedRun, run_benchmark
from otter_cli.benchmarks.tasks.assemble import assemble_preference
from otter_cli.benchmarks.tasks.preference import step_area
from otter_cli.core.errors import OtterError
from otter_cli.decoding.bounds import Gate
from otter_cli.decoding.generate import generate
from otter_cli.decoding.guides.signal_guides import SignalGuide
from otter_cli.decoding.sampling import Sampling
from otter_cli.scorers.response_models import EncoderScorer
from otter_cli.scorers.scorer import Exchange
from tests.unit.benchmarks.benchmark_runs import greedy, samples


@pytest.fixture(scope="module")
def swept(contestants, grafts, tiny_llama, tmp_path_factory) -> FinishedRun:
    asked = [
        "sampled=plain:temperature=0.7,top_k=6",
        "best-of-n:n=4,temperature=1",
        f"args-front=args:model={contestants.reward_model},strength=1/20,temperature=1",
    ]
    benchmark = assemble_preference(
        grafts,
        greedy(contestants, grafts),
        Guidance(signal="reward", strength=1.0, candidates=5, sweep=(30.0,)),
        reward_model=contestants.reward_model,
        gold=contestants.gold,
        encoder=tiny_llama,
        more=parse_methods(asked),
    )
    return run_benchmark(benchmark, tmp_path_factory.mktemp("swept") / "run")


def test_kl_of_drawn_text_is_that_of_the_distribution_it_was_drawn_from(
    swept: FinishedRun, contestants
) -> None:
    base = AutoModelForCausalLM.from_pretrained(contestants.graft).eval()
    tokenizer = AutoTokenizer.from_pretrained(contestants.graft)
    prompts = contestants.prompts.read_text().splitlines()
    apart, tokens = 0.0, 0
    for sample in samples(swept):
        if sample["method"] != "sampled":
            continue
        before = tokenizer(prompts[int(sample["prompt"]) - 1]).input_ids
        with torch.no_grad():
            whole = torch.tensor([before + sample["tokens"]])
            logits = base(whole).logits[0, len(before) - 1 : -1].double()
        cut = logits / 0.7
        cut[cut < cut.topk(6).values[:, -1:]] = -math.inf
        taken = torch.tensor(sample["tokens"])[:, None]
        difference = cut.log_softmax(-1) - logits.log_softmax(-1)
        apart += float(difference.gather(-1, taken).sum())
        tokens += len(sample["tokens"])
    found = swept.result.methods["sampled"].metrics["kl"].mean
    assert found == pytest.approx(apart / tokens, rel=1e-4)


def test_greedy_text_costs_its_surprise_and_best_of_n_its_bound(swept: FinishedRun) -> None:
    methods = swept.result.methods
    assert methods["plain"].metrics["kl"].mean == pytest.approx(
        -methods["plain"].metrics["log_probability"].mean
    )
    chosen = [s for s in samples(swept) if s["method"] == "best-of-n"]
    drawn = sum(sum(s["drawn"]) - sum(s["logprobs"]) for s in chosen)
    bound = len(chosen) * (math.log(4) - 3 / 4)
    tokens = sum(len(s["tokens"]) for s in chosen)
    assert methods["best-of-n"].metrics["kl"].mean == pytest.approx((drawn + bound) / tokens)


def test_where_a_gate_is_closed_the_token_is_drawn_as_plain_decoding_draws_it(grafts) -> None:
    model, prompts = grafts[0].model, [[1, 5, 6], [1, 7, 8, 9]]
    drawn = Sampling(max_new_tokens=6, temperature=1.0, seed=3)
    guide = SignalGuide("reward", 9.0, candidates=4)
    shut = generate(model, prompts, drawn, guide=guide, gate=Gate(entropy=1e9))
    plain = generate(model, prompts, drawn)
    assert [g.drawn for g in shut] == [g.drawn for g in plain]
    assert all(g.drawn == pytest.approx(g.logprobs, abs=1e-4) for g in plain)
    half = generate(model, prompts, drawn, guide=guide, gate=Gate(top_probability=0.1))
    assert all(len(g.drawn) == len(g.tokens) for g in half)


def test_fronts_hold_their_families_and_reach_as_far(swept: FinishedRun) -> None:
    found = swept.result.fronts
    assert {name: front.methods for name, front in found.items()} == {
        "insertion": ["insertion", "insertion@30"],
        "args-front": ["args-front@1", "args-front@20"],
    }
    metrics = {name: m.metrics for name, m in swept.result.methods.items()}
    reached = [max(metrics[m]["kl"].mean for m in front.methods) for front in found.values()]
    assert all(front.up_to == pytest.approx(min(reached)) for front in found.values())
    points = ("plain", *found["insertion"].methods)
    costs, rewards = (
        np.array([metrics[m][what].mean for m in points]) for what in ("kl", "gold_reward")
    )
    expected = step_area(costs, rewards - rewards[0], min(reached))
    assert found["insertion"].area.mean == pytest.approx(expected)


@pytest.mark.parametrize(
    ("costs", "gains", "up_to", "area"),
    [
        ([1, 2, 3], [0, 4, 6], 4, (0 + 4 + 6) / 3),
        ([1, 3, 2], [0, 6, 4], 4, (0 + 4 + 6) / 3),
        ([1, 2, 3], [0, 4, 1], 4, (0 + 4 + 4) / 3),
        ([1, 0.5, 9], [0, 2, 7], 5, 2),
        ([1, 2, 9], [0, -3, 7], 5, 0),
    ],
)
def test_areas_worked_by_hand(costs, gains, up_to: float, area: float) -> None:
    assert step_area(np.array(costs, float), np.array(gains, float), up_to) == pytest.approx(area)


def test_coherence_is_the_cosine_of_mean_states(swept: FinishedRun, tiny_llama: Path) -> None:
    scorer = swept.result.scorers["coherence"]
    assert (scorer.kind, scorer.name) == ("encoder", "base")
    assert all("coherence" in m.metrics for m in swept.result.methods.values())
    model, tokenizer = (
        AutoModel.from_pretrained(tiny_llama),
        AutoTokenizer.from_pretrained(tiny_llama),
    )
    with torch.no_grad():
        one, other = (
            model(tokenizer(text, return_tensors="pt").input_ids).last_hidden_state[0].mean(0)
            for text in ("a b", "c d e")
        )
    expected = float(one @ other / one.norm() / other.norm())
    scores = EncoderScorer(tiny_llama).score(
        [Exchange("x", "a b", "c d e"), Exchange("y", "a", " ")]
    )
    assert scores["coherence"] == [pytest.approx(expected, abs=1e-5), 0.0]


def test_a_folder_that_is_no_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OtterError, match="is not a checkpoint"):
        EncoderScorer(tmp_path)
