"""Runs that finish, stop, resume and refuse."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from otter_cli.benchmarks.results import BenchmarkResult
from otter_cli.benchmarks.runner.run_benchmark import run_benchmark, score_run
from otter_cli.benchmarks.runner.run_folder import RunFolder
from otter_cli.core.errors import OtterError
from otter_cli.scorers.scorer import RuleScorer
from tests.unit.benchmarks.toy_benchmark import ToyMethod, toy_benchmark


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_leaves_its_folder_and_a_result_in_the_schema(tmp_path: Path) -> None:
    finished = run_benchmark(toy_benchmark(), tmp_path / "run")
    names = {path.name for path in finished.folder.iterdir()}
    assert names == {
        "run.yaml", "prompts.jsonl", "samples.jsonl", "timings.jsonl", "scores.jsonl",
        "environment.json", "result.json", "examples.json",
    }  # fmt: skip
    assert BenchmarkResult.read(finished.folder) == finished.result
    assert set(finished.result.methods) == {"plain", "dull"}
    for method in finished.result.methods.values():
        for figure in method.metrics.values():
            assert figure.low <= figure.mean <= figure.high and figure.n == 4
    samples = lines(finished.folder / "samples.jsonl")
    assert len(samples) == 2 * 4 * 3
    assert not any("seconds" in json.dumps(sample) for sample in samples)


def test_figures_can_be_recomputed_from_the_stored_samples(tmp_path: Path) -> None:
    finished = run_benchmark(toy_benchmark(), tmp_path / "run")
    for name, method in finished.result.methods.items():
        own = [s for s in lines(finished.folder / "samples.jsonl") if s["method"] == name]
        gold = [len(set(s["text"].split())) for s in own]
        assert method.metrics["gold_reward"].mean == pytest.approx(sum(gold) / len(gold))
        assert method.metrics["tokens"].mean == 8
    plain, dull = (finished.result.methods[name] for name in ("plain", "dull"))
    assert dull.against_plain["gold_reward"].mean == pytest.approx(
        dull.metrics["gold_reward"].mean - plain.metrics["gold_reward"].mean
    )
    assert dull.against_plain["gold_reward"].high < 0
    assert plain.against_plain == {}
    assert dull.memory.weights == 1_000 and dull.memory.caches == 100


def test_the_same_run_twice_writes_the_same_samples(tmp_path: Path) -> None:
    folders = [run_benchmark(toy_benchmark(), tmp_path / name).folder for name in "ab"]
    one, two = ((folder / "samples.jsonl").read_bytes() for folder in folders)
    assert one == two


def test_another_seed_writes_other_samples_under_another_key(tmp_path: Path) -> None:
    one = run_benchmark(toy_benchmark(), tmp_path / "a")
    two = run_benchmark(toy_benchmark(seed=1), tmp_path / "b")
    assert one.result.key != two.result.key
    assert (one.folder / "samples.jsonl").read_bytes() != (
        two.folder / "samples.jsonl"
    ).read_bytes()


def test_the_default_folder_is_named_by_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one = run_benchmark(toy_benchmark())
    assert one.folder == Path("runs") / f"preference-{one.result.key[:10]}"
    assert run_benchmark(toy_benchmark(max_new_tokens=9)).folder != one.folder


def test_rerunning_generates_nothing_again(tmp_path: Path) -> None:
    before = run_benchmark(toy_benchmark(), tmp_path / "run").result
    samples = (tmp_path / "run" / "samples.jsonl").read_bytes()
    benchmark = toy_benchmark()
    after = run_benchmark(benchmark, tmp_path / "run").result
    assert [m.generate.calls for m in benchmark.methods.values()] == [0, 0]  # type: ignore[attr-defined]
    assert (tmp_path / "run" / "samples.jsonl").read_bytes() == samples
    assert after.methods == before.methods


def test_ctrl_c_ends_after_a_call_and_says_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark = toy_benchmark()
    generate, calls = benchmark.methods["plain"].generate, []

    def interrupted_generate(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:  # the first one warms up
            os.kill(os.getpid(), signal.SIGINT)
        return generate(*arguments)

    object.__setattr__(benchmark.methods["plain"], "generate", interrupted_generate)
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(benchmark, tmp_path / "run")
    kept = lines(tmp_path / "run" / "samples.jsonl")
    said = " ".join(capsys.readouterr().err.split())
    assert 0 < len(kept) < 2 * 4 * 3 and f"{len(kept)} of 24 samples are new in" in said
    assert "a token takes so far: plain" in said and "goes on from there" in said
    whole = run_benchmark(toy_benchmark(), tmp_path / "whole").folder / "samples.jsonl"
    run_benchmark(toy_benchmark(), tmp_path / "run")
    assert (tmp_path / "run" / "samples.jsonl").read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("calls", range(1, 8, 2))
def test_a_run_that_was_interrupted_goes_on_to_the_same_samples(tmp_path: Path, calls: int) -> None:
    whole = run_benchmark(toy_benchmark(), tmp_path / "whole").folder / "samples.jsonl"
    dying = toy_benchmark()
    dying.methods["dull"].generate.dies_after = calls  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(dying, tmp_path / "run")
    part = tmp_path / "run" / "samples.jsonl"
    assert whole.read_bytes().startswith(part.read_bytes())
    resumed = toy_benchmark()
    run_benchmark(resumed, tmp_path / "run")
    assert part.read_bytes() == whole.read_bytes()
    # One call each went into warming up, in both processes.
    assert resumed.methods["dull"].generate.calls == 8 - (calls - 1) + 1  # type: ignore[attr-defined]


def test_prompts_that_share_a_call_are_resumed_to_the_same_samples(tmp_path: Path) -> None:
    whole = run_benchmark(toy_benchmark(together=3), tmp_path / "whole")
    assert whole.result.settings.together == 3
    written = whole.folder / "samples.jsonl"
    # Five calls a method: two of each three repeats at a time, of three prompts and of the fourth.
    torn = tmp_path / "run"
    dying = toy_benchmark(together=3)
    dying.methods["dull"].generate.dies_after = 3  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(dying, torn)
    run_benchmark(toy_benchmark(together=3), torn)
    assert (torn / "samples.jsonl").read_bytes() == written.read_bytes()
    made = {(s["method"], s["prompt"], s["repeat"]) for s in lines(written)}
    assert len(made) == len(lines(written)) == 2 * 4 * 3
    # A key says whether calls were shared, and nothing where they were not.
    alone = toy_benchmark().settings()
    assert whole.result.key != alone.key
    assert alone.differences(whole.result.settings) == ["together"]


@pytest.mark.parametrize("cut", [1, 30, 200, 2_000])
def test_a_torn_last_line_is_made_again(tmp_path: Path, cut: int) -> None:
    folder = run_benchmark(toy_benchmark(), tmp_path / "run").folder
    path = folder / "samples.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    run_benchmark(toy_benchmark(), folder)
    assert path.read_bytes() == whole


def test_a_time_that_is_lost_is_measured_again_and_its_sample_kept(tmp_path: Path) -> None:
    folder = run_benchmark(toy_benchmark(), tmp_path / "run").folder
    samples, timings = folder / "samples.jsonl", folder / "timings.jsonl"
    before = samples.read_bytes()
    timings.write_text("".join(timings.read_text().splitlines(keepends=True)[:-1]))
    run_benchmark(toy_benchmark(), folder)
    assert samples.read_bytes() == before
    assert len(lines(timings)) == len(lines(samples))
    assert {line["session"] for line in lines(timings)} == {0, 1}


def test_no_figure_is_drawn_from_less_than_all_samples(tmp_path: Path) -> None:
    benchmark = toy_benchmark()
    expected = pytest.raises(OtterError, match="sample 0 of prompt 1 by plain is missing")
    with RunFolder.opened(tmp_path / "run", benchmark.settings()) as folder, expected:
        folder.write_prompts(benchmark.setting.prompts)
        score_run(benchmark, folder)


def test_a_dropped_sample_is_made_again_and_never_left_out(tmp_path: Path) -> None:
    folder = run_benchmark(toy_benchmark(), tmp_path / "run").folder
    path = folder / "samples.jsonl"
    kept = path.read_text().splitlines(keepends=True)
    path.write_text("".join(kept[:3] + kept[4:]))
    result = run_benchmark(toy_benchmark(), folder).result
    assert sorted(path.read_text().splitlines(keepends=True)) == sorted(kept)
    assert result.methods["plain"].metrics["tokens"].n == 4


def test_other_settings_in_the_same_folder_are_refused_by_name(tmp_path: Path) -> None:
    run_benchmark(toy_benchmark(), tmp_path / "run")
    with pytest.raises(OtterError, match=r"other settings: sampling\.max_new_tokens, seed"):
        run_benchmark(toy_benchmark(seed=3, max_new_tokens=9), tmp_path / "run")


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OtterError, match=r"no run.yaml among them"):
        run_benchmark(toy_benchmark(), tmp_path)


def test_names_of_files_do_not_make_another_run(tmp_path: Path) -> None:
    run_benchmark(toy_benchmark(), tmp_path / "run")
    text = (tmp_path / "run" / "run.yaml").read_text()
    (tmp_path / "run" / "run.yaml").write_text(text.replace("toy.txt", "renamed.txt"))
    run_benchmark(toy_benchmark(), tmp_path / "run")
    assert "key" not in yaml.safe_load(text)


def test_a_scorer_that_fails_keeps_the_samples_and_writes_no_result(tmp_path: Path) -> None:
    def broken(prompt: str, response: str) -> float:
        raise RuntimeError("out of memory")

    gold = RuleScorer("broken", broken, digest="1")
    with pytest.raises(OtterError, match="broken failed on sample 0 of prompt 1 by plain"):
        run_benchmark(toy_benchmark(gold=gold), tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()
    benchmark = toy_benchmark()
    run_benchmark(benchmark, tmp_path / "run")
    assert benchmark.methods["plain"].generate.calls == 0  # type: ignore[attr-defined]


def test_methods_take_turns_on_every_prompt(tmp_path: Path) -> None:
    folder = run_benchmark(toy_benchmark(), tmp_path / "run").folder
    order = [(s["prompt"], s["method"]) for s in lines(folder / "samples.jsonl")]
    assert order == sorted(order, key=lambda pair: int(pair[0]))
    first = [method for i, (_, method) in enumerate(order) if i % 6 == 0]
    assert first == ["plain", "dull", "plain", "dull"]


def test_a_method_that_loses_a_row_stops_the_run(tmp_path: Path) -> None:
    method = ToyMethod()

    def lossy(prompts, sampling):
        return method(prompts, sampling)[: max(1, len(prompts) - 1)]

    benchmark = toy_benchmark(generate={"plain": lossy})
    with pytest.raises(ValueError, match="zip"):
        run_benchmark(benchmark, tmp_path / "run")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_signal_that_is_not_finite_stops_the_run(tmp_path: Path, value: float) -> None:
    method = ToyMethod()

    def broken(prompts: list, sampling: object) -> list:
        made = method(prompts, sampling)
        made[0].signals = {"reward": [0.0, value]}
        return made

    with pytest.raises(OtterError, match="signal 'reward' is not finite"):
        run_benchmark(toy_benchmark(generate={"plain": broken}), tmp_path / "run")


def test_an_infinite_surprise_stops_the_run(tmp_path: Path) -> None:
    method = ToyMethod()

    def impossible(prompts, sampling):
        made = method(prompts, sampling)
        made[0].logprobs[0] = float("-inf")
        return made

    with pytest.raises(OtterError, match="log-probability"):
        run_benchmark(toy_benchmark(generate={"plain": impossible}), tmp_path / "run")


def test_two_processes_do_not_write_one_run(tmp_path: Path) -> None:
    outer = toy_benchmark()

    def nested(prompts, sampling):
        run_benchmark(toy_benchmark(), tmp_path / "run")

    benchmark = toy_benchmark(generate={"plain": nested})
    del outer
    with pytest.raises(OtterError, match="another otter is writing here"):
        run_benchmark(benchmark, tmp_path / "run")
