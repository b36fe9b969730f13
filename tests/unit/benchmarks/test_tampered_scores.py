"""Lies planted in scorers and in stored runs: each stops the run, none is averaged."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from otter_cli.benchmarks.runner.compare import compare_runs
from otter_cli.benchmarks.runner.run_benchmark import run_benchmark
from otter_cli.benchmarks.runner.run_folder import RunFiles
from otter_cli.benchmarks.runner.stored_run import rescore_run
from otter_cli.core.errors import OtterError
from otter_cli.scorers.detoxify import DetoxifyScorer
from otter_cli.scorers.load import LoadedModel, load_reward_model
from otter_cli.scorers.response_models import EncoderScorer, RewardModelScorer, SignalScorer
from otter_cli.scorers.scorer import Exchange, RuleScorer, Scorer, score_all
from tests.support.benchmark_models import BenchmarkModels
from tests.unit.benchmarks.toy_benchmark import toy_benchmark

EXCHANGES = [Exchange(f"x{i}", "a b", " c d" + " e" * i, (1, 5), (6, 7 + i)) for i in range(3)]
Scores = dict[str, list[float]]


class Lying:
    """A real scorer whose answer somebody changes."""

    def __init__(self, honest: Scorer, lie: Callable[[Scores], Scores]) -> None:
        self.record, self.honest, self.lie = honest.record, honest, lie

    def score(self, exchanges: Any) -> Scores:
        told = {label: list(values) for label, values in self.honest.score(exchanges).items()}
        return self.lie(told)


def raising(scores: Scores) -> Scores:
    raise RuntimeError("out of memory")


def first(change: Callable[[list[float]], list[float]]) -> Callable[[Scores], Scores]:
    return lambda scores: {
        label: change(values) if not i else values
        for i, (label, values) in enumerate(scores.items())
    }


LIES = {
    "raises": (raising, "RuntimeError: out of memory"),
    "nan": (first(lambda v: [*v[:-1], math.nan]), "gave nan"),
    "infinite": (first(lambda v: [-math.inf, *v[1:]]), "gave -inf"),
    "one too few": (first(lambda v: v[:-1]), "gave 2 scores"),
    "one too many": (first(lambda v: [*v, 0.0]), "gave 4 scores"),
    "no label": (lambda scores: dict(list(scores.items())[1:]), "gave no"),
}


@pytest.fixture(scope="module")
def scorers(contestants: BenchmarkModels, grafts, tiny_llama: Path) -> dict[str, Scorer]:
    loaded: LoadedModel = load_reward_model(contestants.gold, device="cpu")
    return {
        "reward model": RewardModelScorer(*loaded),
        "signal": SignalScorer(grafts[0], "reward"),
        "encoder": EncoderScorer(tiny_llama),
        "detoxify": DetoxifyScorer(contestants.detoxify),
        "rule": RuleScorer("words", lambda _, text: float(len(text)), digest="1"),
    }


@pytest.mark.parametrize("kind", ["reward model", "signal", "encoder", "detoxify", "rule"])
@pytest.mark.parametrize("lie", list(LIES))
def test_no_scorer_s_lie_becomes_a_number(scorers: dict[str, Scorer], kind: str, lie: str) -> None:
    plant, what = LIES[lie]
    with pytest.raises(OtterError) as caught:
        score_all(Lying(scorers[kind], plant), EXCHANGES, lambda count: None)
    assert what in caught.value.what and scorers[kind].record.name in caught.value.what
    honest = score_all(scorers[kind], EXCHANGES, lambda count: None)
    assert all(len(values) == 3 for values in honest.values())


def edited(folder: Path, name: str, change: Callable[[list[str]], list[str]]) -> None:
    path = folder / name
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))


def with_first(line: str, **changed: Any) -> str:
    return json.dumps({**json.loads(line), **changed}) + "\n"


@pytest.mark.parametrize("name", ["samples.jsonl", "timings.jsonl", "scores.jsonl"])
def test_a_line_dropped_from_a_finished_run_is_named_by_who_reads_it(
    tmp_path: Path, name: str
) -> None:
    folders = [run_benchmark(toy_benchmark(), tmp_path / one).folder for one in "ab"]
    edited(folders[1], name, lambda lines: lines[:3] + lines[4:])
    with pytest.raises(OtterError, match=f"{name}: sample . of prompt . by .* is missing"):
        compare_runs(*folders)


def test_a_run_that_lost_a_sample_is_not_judged_again(tmp_path: Path, contestants) -> None:
    folder = run_benchmark(toy_benchmark(), tmp_path / "run").folder
    before = (folder / "result.json").read_bytes()
    edited(folder, "samples.jsonl", lambda lines: lines[1:])
    judge = RewardModelScorer(*load_reward_model(contestants.gold, device="cpu"))
    with pytest.raises(OtterError, match="is missing"):
        rescore_run(folder, judge)
    assert (folder / "result.json").read_bytes() == before


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"logprobs": [-math.inf] + [-1.0] * 7}, "logprobs.0"),
        ({"logprobs": [math.nan] + [-1.0] * 7}, "logprobs.0"),
        ({"logprobs": [-1.0] * 7}, "7 logprobs for 8 tokens"),
        ({"drawn": [-1.0]}, "1 drawn for 8 tokens"),
        ({"tokens": [0] * 9}, "8 logprobs for 9 tokens"),
        ({"note": "all is well"}, "note"),
    ],
)
def test_a_sample_that_was_touched_up_is_refused_by_its_line(
    tmp_path: Path, changed: dict[str, Any], what: str
) -> None:
    folder = run_benchmark(toy_benchmark(), tmp_path / "run").folder
    edited(folder, "samples.jsonl", lambda lines: [with_first(lines[0], **changed), *lines[1:]])
    with pytest.raises(OtterError, match="line 1") as caught:
        run_benchmark(toy_benchmark(), folder)
    assert what in caught.value.what


@pytest.mark.parametrize("seconds", [-1.0, math.nan, math.inf])
def test_a_time_that_cannot_be_is_refused(tmp_path: Path, seconds: float) -> None:
    folder = run_benchmark(toy_benchmark(), tmp_path / "run").folder
    edited(folder, "timings.jsonl", lambda ls: [with_first(ls[0], seconds=seconds), *ls[1:]])
    with pytest.raises(OtterError, match=r"timings.jsonl, line 1: seconds"):
        RunFiles(folder).timings()


def test_a_surprise_beyond_all_floats_is_no_perplexity(tmp_path: Path) -> None:
    folder = run_benchmark(toy_benchmark(), tmp_path / "run").folder
    huge = {"logprobs": [-1e300] * 8}
    edited(folder, "samples.jsonl", lambda lines: [with_first(lines[0], **huge), *lines[1:]])
    with pytest.raises(OtterError, match="perplexity of plain is undefined"):
        run_benchmark(toy_benchmark(), folder)
