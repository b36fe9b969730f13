"""Finished runs read again: compared, rescored, held against expectations, without a model."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from otter_cli.benchmarks.results import BenchmarkResult
from otter_cli.benchmarks.runner import stored_run
from otter_cli.benchmarks.runner.compare import check_expectations, compare_runs, read_expectations
from otter_cli.benchmarks.runner.run_benchmark import run_benchmark
from otter_cli.benchmarks.runner.stored_run import read_run
from otter_cli.core.errors import OtterError
from otter_cli.scorers.scorer import RuleScorer
from tests.unit.benchmarks.toy_benchmark import ToyBenchmark, ToyMethod, toy_benchmark


@pytest.fixture(autouse=True)
def toys_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stored_run.BENCHMARKS, "preference", ToyBenchmark)


def words(words: int, folder: Path, **options) -> Path:
    """A run in which plain knows eight words, and `dull` knows `words`."""
    generate = {"plain": ToyMethod(), "dull": ToyMethod(words=words)}
    return run_benchmark(toy_benchmark(prompts=8, generate=generate, **options), folder).folder


def test_a_stored_run_gives_the_figures_that_it_gave(tmp_path: Path) -> None:
    folder = words(2, tmp_path / "run")
    stored = read_run(folder)
    own = stored.data.rows["dull"].means(lambda row: row.scores["gold.reward"])
    assert stored.result.methods["dull"].metrics["gold_reward"].mean == pytest.approx(own.mean())
    found = compare_runs(folder, folder)
    for method in found.methods:
        before = stored.result.methods[method.first].metrics
        assert all(one == other == before[m] for m, (one, other) in method.figures.items())
        assert all(d.low == d.mean == d.high == 0 for d in method.differences.values())


def test_a_difference_between_runs_is_paired_as_scipy_pairs_it(tmp_path: Path) -> None:
    one, two = words(2, tmp_path / "one"), words(4, tmp_path / "two")
    rewards = [
        read_run(f).data.rows["dull"].means(lambda row: row.scores["gold.reward"])
        for f in (one, two)
    ]
    found = compare_runs(one, two, ("dull", "dull")).methods[0].differences["gold_reward"]
    reference = stats.bootstrap(
        (rewards[1] - rewards[0],), np.mean, n_resamples=20_000, method="percentile", rng=0
    ).confidence_interval
    assert found.mean == pytest.approx((rewards[1] - rewards[0]).mean()) and found.mean > 0
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high), abs=0.08)
    assert compare_runs(two, one, ("dull", "dull")).methods[0].differences["gold_reward"].mean < 0


@pytest.mark.parametrize(
    ("options", "named"),
    [({"seed": 1}, "seed"), ({"max_new_tokens": 9}, "sampling.max_new_tokens"),
     ({"gold": RuleScorer("other", lambda _, text: 1.0, digest="2")}, "scorer gold")],
)  # fmt: skip
def test_unlike_runs_are_refused_by_what_differs(tmp_path: Path, options, named: str) -> None:
    one, two = words(2, tmp_path / "one"), words(2, tmp_path / "two", **options)
    with pytest.raises(OtterError, match=f"differ in {named}"):
        compare_runs(one, two)


def test_an_unknown_method_is_refused_with_the_nearest(tmp_path: Path) -> None:
    folder = words(2, tmp_path / "run")
    with pytest.raises(OtterError, match="has no method 'dul'") as caught:
        compare_runs(folder, folder, ("dul", "dull"))
    assert "'dull'" in caught.value.hint


@pytest.mark.parametrize("name", ["samples", "timings", "scores"])
def test_a_line_that_was_dropped_is_named(tmp_path: Path, name: str) -> None:
    folder = words(2, tmp_path / "run")
    path = folder / f"{name}.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(OtterError, match=rf"{name}.jsonl: sample 0 of prompt 1 by plain"):
        read_run(folder)


def test_another_judge_scores_the_same_samples(tmp_path: Path) -> None:
    folder = words(2, tmp_path / "run")
    samples = (folder / "samples.jsonl").read_bytes()
    longer = RuleScorer("letters", lambda _, text: float(len(text)), digest="9")
    longer.record = longer.record.model_copy(update={"kind": "reward-model"})
    result = stored_run.rescore_run(folder, longer)
    assert (folder / "samples.jsonl").read_bytes() == samples
    assert result.scorers["gold"].name == "letters" and BenchmarkResult.read(folder) == result
    # Eight words of one letter, each after a space.
    assert result.methods["dull"].metrics["gold_reward"].mean == 16
    assert read_run(folder).result == result


def test_a_guide_cannot_become_the_judge(tmp_path: Path) -> None:
    folder = words(2, tmp_path / "run")
    guide = RuleScorer("guide", lambda _, text: 1.0, digest="0")
    guide.record = guide.record.model_copy(update={"kind": "reward-model"})
    with pytest.raises(OtterError, match="the one that guides"):
        stored_run.rescore_run(folder, guide)


def expectations(folder: Path, text: str) -> Path:
    path = folder / "expectations.yaml"
    path.write_text(text)
    return path


def test_bounds_are_held_against_the_whole_interval(tmp_path: Path) -> None:
    result = BenchmarkResult.read(words(4, tmp_path / "run"))
    figure = result.methods["dull"].metrics["gold_reward"]
    assert figure.low < figure.mean < figure.high
    between = (figure.low + figure.mean) / 2
    text = f"""
expect:
  dull:
    gold_reward: {{at_least: {between}}}
    diversity: {{at_most: 0, against: plain, by: mean}}
    tokens: {{at_least: 8, at_most: 8}}
"""
    found = check_expectations(result, read_expectations(expectations(tmp_path, text)))
    assert [one.holds for one in found] == [False, True, True]
    by_mean = text.replace(f"{between}", f"{between}, by: mean")
    assert check_expectations(result, read_expectations(expectations(tmp_path, by_mean)))[0].holds


@pytest.mark.parametrize(
    ("text", "words_of_it"),
    [
        ("expect: {dull: {gold_rewrd: {at_least: 1}}}", "no figure 'gold_rewrd'"),
        ("expect: {dul: {tokens: {at_least: 1}}}", "no method 'dul'"),
        ("expect: {dull: {tokens: {}}}", "give at_least, at_most or both"),
        ("expect: {dull: {tokens: {at_least: .nan}}}", "finite"),
        ("expect: {}", "at least 1"),
        ("expect: [", "not YAML"),
        ("expect: {dull: {tokens: {atleast: 1}}}", "atleast"),
        ("benchmark: detox\nexpect: {dull: {tokens: {at_least: 1}}}", "expectations of detox"),
        ("expect: {plain: {tokens: {at_least: 1, against: plain}}}", "no difference from plain"),
    ],
)
def test_an_expectation_of_nothing_is_refused(tmp_path: Path, text: str, words_of_it: str) -> None:
    result = BenchmarkResult.read(words(2, tmp_path / "run"))
    with pytest.raises(OtterError, match=words_of_it):
        check_expectations(result, read_expectations(expectations(tmp_path, text)))
