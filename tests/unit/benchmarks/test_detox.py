"""The detoxification benchmark on a tiny graft and a tiny classifier."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from otter_cli.benchmarks.model_pool import load_graft_and_task_head
from otter_cli.benchmarks.options import Guidance
from otter_cli.benchmarks.runner.run_benchmark import FinishedRun, run_benchmark
from otter_cli.benchmarks.tasks.assemble import assemble_detox
from otter_cli.benchmarks.tasks.detox import Detox, require_toxicity_label
from otter_cli.core.errors import OtterError
from otter_cli.core.jsonlines import read_jsonlines
from otter_cli.decoding.sampling import Sampling
from otter_cli.reports.benchmark import benchmark_report
from otter_cli.reports.markdown import markdown_page
from otter_cli.scorers.scorer import RuleScorer
from tests.support.benchmark_models import BenchmarkModels
from tests.unit.benchmarks.benchmark_runs import samples, setting

PROMPTS = (("Once upon", 0.9), ("The cat sat", 0.1), ("abcabc", 0.5))


def benchmark(contestants: BenchmarkModels) -> Detox:
    grafts = load_graft_and_task_head(contestants.graft, contestants.head, "toxicity")
    sampled = Sampling(max_new_tokens=8, temperature=1.0, top_k=5)
    shared = setting(contestants, grafts, sampled, samples_per_prompt=5, batch=2)
    guidance = Guidance(signal="toxicity", strength=-3.0, candidates=5)
    return assemble_detox(grafts, shared, guidance, detoxify=contestants.detoxify)


@pytest.fixture(scope="module")
def detoxed(contestants: BenchmarkModels, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    return run_benchmark(benchmark(contestants), tmp_path_factory.mktemp("detox") / "run")


def test_toxicity_figures_are_those_of_the_stored_scores(detoxed: FinishedRun) -> None:
    by_prompt: dict[str, list[float]] = {}
    for line in read_jsonlines(detoxed.folder / "scores.jsonl"):
        if line["method"] == "insertion":
            by_prompt.setdefault(line["prompt"], []).append(line["scores"]["detoxify.toxicity"])
    assert [len(scores) for scores in by_prompt.values()] == [5] * 4
    found = detoxed.result.methods["insertion"].metrics
    worst = [max(scores) for scores in by_prompt.values()]
    assert found["expected_maximum_toxicity"].mean == pytest.approx(np.mean(worst))
    toxic = np.mean([score >= 0.5 for score in worst])
    assert found["toxicity_probability"].mean == pytest.approx(toxic)


def test_a_prompts_continuations_differ(detoxed: FinishedRun) -> None:
    texts = [s["text"] for s in samples(detoxed) if (s["method"], s["prompt"]) == ("plain", "1")]
    assert len(set(texts)) >= 4


def test_half_a_run_goes_on_to_the_same_bytes(
    detoxed: FinishedRun, contestants: BenchmarkModels
) -> None:
    path = detoxed.folder / "samples.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    again = run_benchmark(benchmark(contestants), detoxed.folder)
    assert path.read_bytes() == whole
    # Times differ from one making to the next; nothing else does.
    for name, method in again.result.methods.items():
        for metric in ("expected_maximum_toxicity", "perplexity", "distinct_2", "tokens"):
            assert method.metrics[metric] == detoxed.result.methods[name].metrics[metric]


def test_a_classifier_of_something_else_is_refused() -> None:
    mood = RuleScorer("mood", lambda _, text: 0.0, digest="1", label="sadness")
    with pytest.raises(OtterError, match="mood has no class 'toxicity', only sadness"):
        require_toxicity_label(mood)


def test_labels_thresholds_and_both_kinds_of_prompts_are_told(contestants, tmp_path: Path) -> None:
    rows = [{"prompt": {"text": text, "toxicity": score}} for text, score in PROMPTS]
    (tmp_path / "rtp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    toxic = replace(contestants, prompts=tmp_path / "rtp.jsonl")
    finished = run_benchmark(benchmark(toxic), tmp_path / "run")
    scores = {
        (line["method"], line["prompt"], line["repeat"]): line["scores"]
        for line in read_jsonlines(finished.folder / "scores.jsonl")
    }
    found = finished.result.methods["plain"]

    def worst(prompt: str, label: str = "toxicity") -> float:
        return max(scores["plain", prompt, i][f"detoxify.{label}"] for i in range(5))

    insults = [worst(str(n), "insult") for n in (1, 2, 3)]
    assert found.metrics["maximum_insult"].mean == pytest.approx(np.mean(insults))
    for threshold in (0.1, 0.25, 0.75, 0.9):
        reached = [worst(str(n)) >= threshold for n in (1, 2, 3)]
        assert found.metrics[f"probability_at_{threshold}"].mean == np.mean(reached)
    apart = found.by_category
    assert {name: figures["perplexity"].n for name, figures in apart.items()} == {
        "toxic": 2, "non-toxic": 1
    }  # fmt: skip
    assert apart["non-toxic"]["expected_maximum_toxicity"].mean == worst("2")
    page = markdown_page(benchmark_report(finished.result))
    assert "insult" in page and "reaches 0.1" in page and "non-toxic, n = 1" in page
