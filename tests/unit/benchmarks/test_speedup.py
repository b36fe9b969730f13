"""The speed-up benchmark on a tiny graft: nothing is lost, and a lie is found."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from otter_cli.benchmarks.benchmark import Benchmark
from otter_cli.benchmarks.runner.run_benchmark import run_benchmark
from otter_cli.benchmarks.tasks.assemble import assemble_speedup
from otter_cli.core.jsonlines import read_jsonlines
from otter_cli.decoding.sampling import Sampling
from tests.unit.benchmarks.benchmark_runs import Pair, greedy, samples, setting


@pytest.fixture(scope="module")
def drafts(contestants, grafts) -> Benchmark:
    return assemble_speedup(grafts, greedy(contestants, grafts), signal="future")


def test_prompts_that_share_a_batch_keep_their_own_texts(
    drafts, contestants, grafts, tmp_path: Path
) -> None:
    shared = assemble_speedup(
        grafts, setting(contestants, grafts, Sampling(12), prompts_per_call=3), signal="future"
    )
    alone, together = (
        {
            (s["method"], s["prompt"]): s["tokens"]
            for s in samples(run_benchmark(one, tmp_path / name))
        }
        for name, one in (("alone", drafts), ("together", shared))
    )
    assert together == alone and len({tuple(tokens) for tokens in alone.values()}) > 2


def test_drafts_lose_nothing_and_count_what_they_kept(drafts, tmp_path: Path) -> None:
    finished = run_benchmark(drafts, tmp_path / "run")
    for name, method in finished.result.methods.items():
        assert method.metrics["identical"].mean == 1 and method.divergences == []
        per_step = method.metrics["tokens_per_step"].mean
        assert method.metrics["drafted_per_step"].mean == pytest.approx(per_step - 1)
        if name != "plain":
            steps = sum(
                len(s["tokens"]) - sum(s["counters"]["accepted"])
                for s in samples(finished)
                if s["method"] == name
            )
            passes = sum(
                s["counters"]["base_passes"] - 1 for s in samples(finished) if s["method"] == name
            )
            # The counters agree with the passes that were really made.
            assert steps == passes


def test_a_draft_that_lies_is_found_and_its_gap_told(
    drafts: Benchmark, grafts: Pair, tmp_path: Path
) -> None:
    folder = run_benchmark(drafts, tmp_path / "run").folder
    path = folder / "samples.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    honest = next(s for s in read_jsonlines(path) if s["method"] == "insertion")
    lie = honest["tokens"][5] + 1
    for i, line in enumerate(lines):
        if '"insertion"' in line and f'"prompt": "{honest["prompt"]}"' in line:
            old = ", ".join(map(str, honest["tokens"]))
            new = ", ".join(map(str, [*honest["tokens"][:5], lie, *honest["tokens"][6:]]))
            assert old in line
            lines[i] = line.replace(old, new)
    path.write_text("".join(lines))
    result = run_benchmark(drafts, folder).result
    (found,) = result.methods["insertion"].divergences
    prompt = next(p for p in drafts.setting.prompts if p.name == honest["prompt"])
    before = [*prompt.tokens, *honest["tokens"][:5]]
    with torch.no_grad():
        logits = grafts[0].model.base(torch.tensor([before])).logits[0, -1]
    gap = abs(logits[lie] - logits[honest["tokens"][5]]).item()
    assert (found.prompt, found.position) == (honest["prompt"], 5)
    assert found.gap == pytest.approx(gap, abs=1e-4)
    assert result.methods["insertion"].metrics["identical"].mean == 0.75
    assert any("differs from plain greedy decoding on 1 of 4" in f for f in result.findings)


def test_categories_batches_and_temperatures_are_told(
    contestants, grafts: Pair, tmp_path: Path
) -> None:
    lines = [("math", "abcabcabc"), ("math", "Who is there?"), ("writing", "The cat")]
    prompts = tmp_path / "spec.jsonl"
    rows = [json.dumps({"category": kind, "turns": [text, "and?"]}) for kind, text in lines]
    prompts.write_text("\n".join(rows))
    sampling = Sampling(max_new_tokens=8, temperature=1.0)
    four = replace(contestants, prompts=prompts)
    shared = setting(four, grafts, sampling, samples_per_prompt=4, batch=4)
    finished = run_benchmark(assemble_speedup(grafts, shared, signal="future"), tmp_path / "run")
    found = finished.result.methods["insertion"]
    assert {kind: figures["speed_up"].n for kind, figures in found.by_category.items()} == {
        "math": 2, "writing": 1
    }  # fmt: skip
    assert "identical" not in found.metrics and found.divergences == []
    assert "rejection sampling" in " ".join(finished.result.findings)
    own = [s for s in samples(finished) if (s["method"], s["prompt"]) == ("insertion", "3")]
    steps = sum(len(s["tokens"]) - sum(s["counters"]["accepted"]) for s in own)
    per_step = sum(len(s["tokens"]) for s in own) / steps
    assert found.by_category["writing"]["tokens_per_step"].mean == pytest.approx(per_step)
    assert len({tuple(s["tokens"]) for s in own}) > 1
