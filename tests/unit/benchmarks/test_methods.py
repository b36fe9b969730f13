"""Every method that can be asked for, from its text to its samples."""

import json
import math
import shutil
from pathlib import Path

import pytest

from otter_cli.benchmarks.methods.generation import METHODS
from otter_cli.benchmarks.methods.specs import build_methods, parse_method, parse_methods
from otter_cli.benchmarks.model_pool import ModelPool
from otter_cli.benchmarks.options import Guidance
from otter_cli.benchmarks.runner.run_benchmark import FinishedRun, run_benchmark
from otter_cli.benchmarks.tasks.assemble import (
    assemble_detox,
    assemble_preference,
    assemble_speedup,
)
from otter_cli.core.errors import OtterError
from otter_cli.decoding.sampling import Sampling
from otter_cli.scorers.load import LoadedGraft, load_graft, load_language_model
from tests.support.benchmark_models import BenchmarkModels
from tests.support.grafts import random_graft
from tests.unit.benchmarks.benchmark_runs import Pair, greedy, samples, setting

# A vocabulary signal, and a reward of another graft.
SIGNALS = ("q=action-reward", "bad=action-reward", "reward", "future:2")


@pytest.fixture(scope="module")
def other(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("other") / "graft"
    return random_graft(
        tiny_llama, folder, hidden=8, heads=2, ffn=16, scale=0.2, seed=5, signals=SIGNALS
    )


@pytest.fixture(scope="module")
def guided(contestants, grafts, other, tiny_llama, tmp_path_factory) -> FinishedRun:
    rewards, drawn = contestants.reward_model, "temperature=1.0"
    asked = [
        f"sampled=plain:{drawn}",
        f"vocabulary:graft={other},signal=q,strength=1,candidates=5",
        f"rad:model={rewards},strength=2,candidates=4",
        f"args-stochastic=args:model={rewards},strength=2,{drawn}",
        f"genarm:model={tiny_llama},strength=0.5",
        f"dexperts:expert={tiny_llama},anti={tiny_llama},strength=1",
        f"dexperts-inserted:graft={other},signal=q,expert=q,anti=bad,strength=1",
        f"best-of-n:n=3,{drawn}",
        f"separate=best-of-n:n=3,model={rewards},{drawn}",
        f"other=value:graft={other},strength=1/2",
    ]
    benchmark = assemble_preference(
        grafts,
        greedy(contestants, grafts),
        Guidance(signal="reward", strength=2.0, candidates=5),
        reward_model=rewards,
        gold=contestants.gold,
        more=parse_methods(asked),
    )
    return run_benchmark(benchmark, tmp_path_factory.mktemp("methods") / "run")


def test_every_guide_answers_every_prompt_under_its_own_name(guided: FinishedRun) -> None:
    made: dict[str, list[str]] = {}
    for sample in samples(guided):
        made.setdefault(sample["method"], []).append(sample["prompt"])
    assert made.keys() == guided.result.methods.keys() == {
        "plain", "insertion", "task-head", "args", "sampled", "vocabulary", "rad",
        "args-stochastic", "genarm", "dexperts", "dexperts-inserted", "best-of-n", "separate",
        "other@1", "other@2",
    }  # fmt: skip
    assert all(sorted(prompts) == ["1", "2", "3", "4"] for prompts in made.values())


def test_equal_experts_and_no_contrast_leave_greedy_text_alone(guided: FinishedRun) -> None:
    texts = {s["method"]: s["tokens"] for s in samples(guided) if s["prompt"] == "1"}
    assert texts["dexperts"] == texts["plain"] != texts["sampled"]


def test_each_guide_is_told_what_it_thinks_of_its_own_text(guided: FinishedRun) -> None:
    metrics = {name: method.metrics for name, method in guided.result.methods.items()}
    for name, role in (
        ("rad", "args"), ("separate", "args"), ("best-of-n", "insertion"), ("other@2", "other")
    ):  # fmt: skip
        assert metrics[name]["guiding_reward"] == metrics[name][f"reward_by_{role}"]
    for name in ("plain", "sampled", "genarm", "dexperts"):
        assert "guiding_reward" not in metrics[name]


def test_passes_and_memory_are_each_methods_own(guided: FinishedRun, grafts: Pair) -> None:
    methods = guided.result.methods
    passes = {name: m.metrics["external_passes"].mean for name, m in methods.items()}
    assert passes["vocabulary"] == passes["best-of-n"] == passes["dexperts-inserted"] == 0
    assert passes["rad"] > 0.9 and passes["dexperts"] > 1.8
    weights = {name: m.memory.weights for name, m in methods.items()}
    assert weights["best-of-n"] == grafts[0].bytes < weights["separate"]
    # The same folder is loaded once, and held once as expert and once as anti-expert.
    assert weights["dexperts"] - grafts[0].base_bytes == 2 * (
        weights["genarm"] - grafts[0].base_bytes
    )


def test_a_front_has_one_method_a_strength(guided: FinishedRun) -> None:
    steering = {n: m.steering for n, m in guided.result.settings.methods.items()}
    assert [steering[f"other@{s}"]["strength"] for s in (1, 2)] == [1.0, 2.0]
    assert steering["args-stochastic"]["temperature"] == 1.0
    assert guided.result.methods["other@2"].label == "other, strength 2"


def test_guides_weigh_as_many_candidates_as_the_run_s_own_unless_told(guided: FinishedRun) -> None:
    steering = {n: m.steering for n, m in guided.result.settings.methods.items()}
    names = ("insertion", "args", "other@1", "other@2", "args-stochastic", "dexperts-inserted")
    assert {steering[name]["candidates"] for name in names} == {5}
    assert steering["rad"]["candidates"] == 4 and steering["genarm"]["candidates"] == 0


def test_text_ends_where_the_signal_crosses_the_bound(contestants, tmp_path: Path) -> None:
    grafts = tuple(load_graft(f, "toxicity", device="cpu") for f in (contestants.graft,) * 2)
    drawn = Sampling(max_new_tokens=8, temperature=1.0, top_k=5)
    shared = setting(contestants, grafts, drawn, samples_per_prompt=3, batch=3)  # type: ignore[arg-type]
    benchmark = assemble_detox(
        grafts,  # type: ignore[arg-type]
        shared,
        Guidance(signal="toxicity", strength=-3.0, candidates=5),
        detoxify=contestants.detoxify,
        more=parse_method("early-stop:bound=0.5"),
    )
    stopped = [
        s
        for s in samples(run_benchmark(benchmark, tmp_path / "run"))
        if s["method"] == "early-stop"
    ]
    ended = [s for s in stopped if s["finish"] == "rejected"]
    assert ended and all(s["signals"]["toxicity"][-1] > 0.5 for s in ended)
    assert all(score <= 0.5 for s in stopped for score in s["signals"]["toxicity"][:-1])


def test_drafts_of_trees_models_and_medusa_lose_nothing(
    contestants, grafts, other, tiny_llama, tmp_path: Path
) -> None:
    asked = [
        "tree=future:tree=3x2", f"medusa=future:graft={contestants.head}",
        f"draft-model:model={tiny_llama},length=3",
    ]  # fmt: skip
    benchmark = assemble_speedup(
        grafts, greedy(contestants, grafts), signal="future", more=parse_methods(asked)
    )
    methods = run_benchmark(benchmark, tmp_path / "run").result.methods
    assert all(method.metrics["identical"].mean == 1 for method in methods.values())
    # The base drafts for itself: what follows a text that ends is all that it loses.
    assert methods["draft-model"].metrics["acceptance_1"].mean >= 0.8
    assert methods["draft-model"].metrics["external_passes"].mean > 0


def test_a_lora_adapter_is_an_expert_too(tiny_llama: Path, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    tuned = get_peft_model(
        base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    tuned.peft_config["default"].base_model_name_or_path = str(tiny_llama)
    tuned.save_pretrained(tmp_path / "lora")
    tokens = torch.tensor([[1, 5, 6]])
    loaded = load_language_model(tmp_path / "lora", device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(tokens).logits, tuned.eval()(tokens).logits)
    # What it is does not hang on where it lies, but on what it is an adapter of.
    for name, changed in (("elsewhere", False), ("other", True)):
        there = tmp_path / name
        shutil.copytree(tiny_llama, there / "base")
        shutil.copytree(tmp_path / "lora", there / "lora")
        (there / "base" / "otter.json").write_text(json.dumps({"time": name}))
        _write_over(there / "lora/adapter_config.json", base_model_name_or_path=f"{there}/base")
        if changed:
            _write_over(there / "base/config.json", rms_norm_eps=0.1)
        again = load_language_model(there / "lora", device="cpu").record
        assert (again == loaded.record) is not changed


def _write_over(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("text", "what", "hint"),
    [
        ("rda:model=x", "no method 'rda'", "did you mean 'rad'"),
        ("rad:model", "'model' is no key=value", "n=8"),
        ("rad:strength=1/x,model=m", "'x' is no strength", "1/2/4"),
        ("value:strength=much", "strength: input should be a valid number", "its options"),
        ("value:candidates=3", "strength: missing", "strength, candidates, end"),
        ("value:strength=1,stregnth=2", "stregnth: unexpected keyword", "graft, signal"),
        ("plain:temperature=hot", "could not convert", "a number"),
        ("vocabulary:signal=p,strength=1", "no signal 'p'", "its signals"),
        ("future:signal=future,tree=3xa", "'a' is no width", "4x2x1"),
        ("dexperts-inserted:strength=1", "neither expert nor anti-expert", "vocabulary"),
        ("x=plain:temperature=1", "two methods are called 'x'", "NAME="),
    ],
)
def test_a_method_that_cannot_be_says_what_is_wrong(
    grafts: tuple[LoadedGraft, LoadedGraft], text: str, what: str, hint: str
) -> None:
    with pytest.raises(OtterError) as caught:
        build_methods(
            [*parse_method("x=plain"), *parse_method(text)], ModelPool(grafts[0], "reward")
        )
    assert what in caught.value.what and hint in str(caught.value.hint)


def test_the_table_names_what_the_guides_are(contestants: BenchmarkModels, grafts: Pair) -> None:
    assert {"value", "vocabulary", "args", "rad", "genarm", "dexperts"} <= METHODS.keys()
    built = build_methods(parse_method("value:strength=0.5"), ModelPool(grafts[0], "reward"))
    assert math.isclose(built["value"].record.steering["strength"], 0.5)
