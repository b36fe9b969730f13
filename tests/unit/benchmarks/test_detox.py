"""The detoxification benchmark on a tiny graft and a tiny classifier."""

import numpy as np
import pytest

from otter_cli.benchmarks.assemble import Guidance, detox
from otter_cli.benchmarks.detox import Detox, require_label
from otter_cli.benchmarks.models import load_pair
from otter_cli.benchmarks.run import Finished, run
from otter_cli.benchmarks.scorers import RuleScorer
from otter_cli.core.errors import OtterError
from otter_cli.core.jsonlines import read_jsonlines
from otter_cli.decoding import Sampling
from tests.support.contestants import Contestants
from tests.unit.benchmarks.runs import samples, setting


def benchmark(contestants: Contestants) -> Detox:
    grafts = load_pair(contestants.graft, contestants.head, "toxicity")
    sampled = Sampling(max_new_tokens=8, temperature=1.0, top_k=5)
    shared = setting(contestants, grafts, sampled, repeats=5, batch=2)
    guidance = Guidance("toxicity", -3.0, candidates=5)
    return detox(grafts, shared, guidance, detoxify=contestants.detoxify)


@pytest.fixture(scope="module")
def detoxed(contestants: Contestants, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return run(benchmark(contestants), tmp_path_factory.mktemp("detox") / "run")


def test_toxicity_figures_are_those_of_the_stored_scores(detoxed: Finished) -> None:
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


def test_a_prompts_continuations_differ(detoxed: Finished) -> None:
    texts = [s["text"] for s in samples(detoxed) if (s["method"], s["prompt"]) == ("plain", "1")]
    assert len(set(texts)) >= 4


def test_half_a_run_goes_on_to_the_same_bytes(detoxed: Finished, contestants: Contestants) -> None:
    path = detoxed.folder / "samples.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    again = run(benchmark(contestants), detoxed.folder)
    assert path.read_bytes() == whole
    # Times differ from one making to the next; nothing else does.
    for name, method in again.result.methods.items():
        for metric in ("expected_maximum_toxicity", "perplexity", "distinct_2", "tokens"):
            assert method.metrics[metric] == detoxed.result.methods[name].metrics[metric]


def test_a_classifier_of_something_else_is_refused() -> None:
    mood = RuleScorer("mood", lambda _, text: 0.0, digest="1", label="sadness")
    with pytest.raises(OtterError, match="mood has no class 'toxicity', only sadness"):
        require_label(mood)
