"""The preference benchmark on a tiny graft, its figures against transformers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from otter_cli.benchmarks.options import Guidance
from otter_cli.benchmarks.runner.run_benchmark import FinishedRun, run_benchmark
from otter_cli.benchmarks.tasks.assemble import assemble_preference
from otter_cli.core.errors import OtterError
from otter_cli.scorers.scorer import RuleScorer
from tests.support.benchmark_models import BenchmarkModels
from tests.unit.benchmarks.benchmark_runs import Pair, greedy, samples


@pytest.fixture(scope="module")
def preferred(contestants, grafts, tmp_path_factory) -> FinishedRun:
    benchmark = assemble_preference(
        grafts,
        greedy(contestants, grafts),
        Guidance(signal="reward", strength=2.0, candidates=5),
        reward_model=contestants.reward_model,
        gold=contestants.gold,
    )
    return run_benchmark(benchmark, tmp_path_factory.mktemp("preference") / "run")


def test_every_method_answered_every_prompt(preferred: FinishedRun) -> None:
    made = {(s["method"], s["prompt"]) for s in samples(preferred)}
    assert made == {
        (method, str(line))
        for method in ("plain", "insertion", "task-head", "args")
        for line in range(1, 5)
    }
    assert preferred.result.settings.prompts.count == 4


def test_plain_is_transformers_own_greedy(
    preferred: FinishedRun, contestants: BenchmarkModels
) -> None:
    base = AutoModelForCausalLM.from_pretrained(contestants.graft).eval()
    tokenizer = AutoTokenizer.from_pretrained(contestants.graft)
    for sample in samples(preferred):
        if sample["method"] == "plain":
            prompt = contestants.prompts.read_text().splitlines()[int(sample["prompt"]) - 1]
            ids = tokenizer(prompt, return_tensors="pt").input_ids
            whole = base.generate(ids, max_new_tokens=12, do_sample=False)[0]
            assert whole[ids.shape[1] :].tolist() == sample["tokens"]
            assert tokenizer.decode(whole, skip_special_tokens=True) == prompt + sample["text"]


def test_perplexity_is_transformers_own(
    preferred: FinishedRun, contestants: BenchmarkModels
) -> None:
    base = AutoModelForCausalLM.from_pretrained(contestants.graft).eval()
    tokenizer = AutoTokenizer.from_pretrained(contestants.graft)
    for method, outcome in preferred.result.methods.items():
        surprise, count = 0.0, 0
        for sample in samples(preferred):
            if sample["method"] != method:
                continue
            prompt = contestants.prompts.read_text().splitlines()[int(sample["prompt"]) - 1]
            before = tokenizer(prompt).input_ids
            ids = torch.tensor([[*before, *sample["tokens"]]])
            # transformers' own loss: labels of -100 are not counted.
            labels = ids.clone()
            labels[:, : len(before)] = -100
            with torch.no_grad():
                surprise += base(ids, labels=labels).loss.item() * len(sample["tokens"])
            count += len(sample["tokens"])
        assert outcome.metrics["perplexity"].mean == pytest.approx(
            np.exp(surprise / count), rel=1e-4
        )


def test_rewards_of_guides_are_told_beside_gold(preferred: FinishedRun) -> None:
    for name, method in preferred.result.methods.items():
        assert {"gold_reward", "reward_by_insertion", "reward_by_args"} <= method.metrics.keys()
        assert ("guiding_reward" in method.metrics) == (name != "plain")
    args = preferred.result.methods["args"].metrics
    assert args["guiding_reward"] == args["reward_by_args"]
    assert args["external_passes"].mean > 0
    assert preferred.result.methods["insertion"].metrics["external_passes"].mean == 0


def test_memory_counts_each_methods_own_models(preferred: FinishedRun, grafts: Pair) -> None:
    graft, head = grafts
    weights = {name: m.memory.weights for name, m in preferred.result.methods.items()}
    assert weights["plain"] == graft.base_bytes
    assert weights["insertion"] == graft.bytes and weights["task-head"] == head.bytes
    assert weights["args"] > 1.8 * graft.base_bytes


def test_a_gold_model_that_guides_is_refused(contestants, grafts) -> None:
    with pytest.raises(OtterError, match="the one that guides args"):
        assemble_preference(
            grafts,
            greedy(contestants, grafts),
            Guidance(signal="reward", strength=1.0),
            reward_model=contestants.gold,
            gold=contestants.gold,
        )


def test_gold_may_be_a_rule(contestants, grafts, tmp_path: Path) -> None:
    rule = RuleScorer("letters", lambda _, text: float(text.count("a")), digest="rule 1")
    benchmark = assemble_preference(
        grafts,
        greedy(contestants, grafts),
        Guidance(signal="reward", strength=1.0, candidates=3),
        reward_model=contestants.reward_model,
        gold=rule,
    )
    finished = run_benchmark(benchmark, tmp_path / "run")
    assert finished.result.scorers["gold"].digest == "rule 1"
    plain = [s["text"].count("a") for s in samples(finished) if s["method"] == "plain"]
    assert finished.result.methods["plain"].metrics["gold_reward"].mean == np.mean(plain)
