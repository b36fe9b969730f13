"""`otter bench` as a user types it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Otter
from tests.support.benchmark_models import BenchmarkModels, write_benchmark_models
from tests.support.chat_tokenizers import TEMPLATES, said


@pytest.fixture(scope="module")
def contestants(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> BenchmarkModels:
    return write_benchmark_models(tiny_llama, tmp_path_factory.mktemp("contestants"))


@pytest.fixture
def arguments(contestants: BenchmarkModels, tmp_path: Path) -> dict[str, list[object]]:
    """A small run of each benchmark, in `tmp_path`/NAME."""
    common = ["--prompts", contestants.prompts, "--task-head", contestants.head, "--limit", 3]
    own = {
        "preference": [
            "--reward-model", contestants.reward_model, "--gold", contestants.gold,
            "--candidates", 4, "--max-new-tokens", 6,
        ],
        "detox": [
            "--detoxify", contestants.detoxify, "--samples", 2, "--batch", 2,
            "--candidates", 4, "--max-new-tokens", 6,
        ],
        "speedup": ["--max-new-tokens", 8],
    }  # fmt: skip
    return {
        name: ["bench", name, contestants.graft, *common, *options, "--out", tmp_path / name]
        for name, options in own.items()
    }


@pytest.mark.parametrize("name", ["preference", "detox", "speedup"])
def test_json_has_every_figure_of_every_method(otter_here: Otter, arguments, name: str) -> None:
    done = otter_here(*arguments[name], "--json")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["benchmark"] == name and data["methods"].keys() >= {"plain", "insertion"}
    for method in data["methods"].values():
        assert method["metrics"]
        for figure in method["metrics"].values():
            assert set(figure) == {"mean", "low", "high", "n"} and figure["n"] == 3
    folder = Path(data["run"])
    assert Path(data["report"]) == folder / "report.html"
    for file in ("run.yaml", "samples.jsonl", "timings.jsonl", "scores.jsonl", "result.json",
                 "environment.json", "report.html", "report.md"):  # fmt: skip
        assert (folder / file).stat().st_size or file == "scores.jsonl"


def test_a_page_for_people_resumption_and_the_report_again(
    otter_here: Otter, arguments, tmp_path: Path
) -> None:
    first = otter_here(*arguments["speedup"])
    assert first.returncode == 0, first.stderr
    assert "tokens per step" in first.stdout and "n = 3 prompts" in first.stdout
    assert max(map(len, first.stdout.splitlines())) <= 100
    samples = (tmp_path / "speedup" / "samples.jsonl").read_bytes()
    assert otter_here(*arguments["speedup"]).returncode == 0
    assert (tmp_path / "speedup" / "samples.jsonl").read_bytes() == samples
    page = (tmp_path / "speedup" / "report.html").read_text()
    (tmp_path / "speedup" / "report.html").unlink()
    again = otter_here("bench", "report", tmp_path / "speedup")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "speedup" / "report.html").read_text().count("<svg") == page.count("<svg")


def test_other_settings_do_not_mix(otter_here: Otter, arguments) -> None:
    assert otter_here(*arguments["speedup"]).returncode == 0
    other = otter_here(*arguments["speedup"], "--max-new-tokens", 9)
    assert other.returncode == 2
    assert "other settings: sampling.max_new_tokens" in other.stderr and "--out" in other.stderr


@pytest.mark.parametrize(
    ("replaced", "by", "words"),
    [
        ("--task-head", "nowhere", "nowhere"),
        ("--prompts", "none.jsonl", "none.jsonl"),
        ("--gold", "GRAFT", "missing keys"),
        ("--gold", "REWARD", "the one that guides args"),
        ("--task-head", "GRAFT", "has a stream of its own"),
        ("--signal", "rewrd", "'rewrd'"),
        ("--max-new-tokens", "900", "no room for a prompt"),
    ],
)
def test_what_is_wrong_is_said_without_a_traceback(
    otter_here: Otter, arguments, contestants, replaced: str, by: str, words: str
) -> None:
    folders = {"GRAFT": contestants.graft, "REWARD": contestants.reward_model}
    done = otter_here(*arguments["preference"], replaced, folders.get(by, by))
    assert done.returncode == 2 and done.stdout == ""
    assert words in done.stderr and "hint:" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["preference", "detox", "speedup"])
def test_without_a_baseline_its_method_is_left_out_and_the_run_says_how_to_train_it(
    otter_here: Otter, arguments, contestants, name: str
) -> None:
    given = list(arguments[name])
    for option in ("--task-head", "--reward-model"):
        if option in given:
            place = given.index(option)
            del given[place : place + 2]
    done = otter_here(*given)
    assert done.returncode == 0, done.stderr
    assert "left out: task head only, which needs --task-head" in done.stderr
    command = f"otter train {contestants.graft} --recipe RECIPE --baseline head --to "
    assert command in done.stderr
    assert ("left out: ARGS, which needs --reward-model" in done.stderr) == (name == "preference")
    assert "Left out: the task head" in done.stdout and "task head only" not in done.stdout
    assert "insertion" in done.stdout


def test_a_run_without_a_result_has_no_report(otter_here: Otter, tmp_path: Path) -> None:
    done = otter_here("bench", "report", tmp_path)
    assert done.returncode == 2 and "no finished run" in done.stderr
    (tmp_path / "result.json").write_text('{"schema_version": 1, "benchmark": "gold"}')
    done = otter_here("bench", "report", tmp_path)
    assert done.returncode == 2 and "result.json cannot be read" in done.stderr


@pytest.mark.parametrize(
    ("result", "says"),
    [
        ("matrix/ablation", "part attention"),
        ("performance/llama-134m-cpu-2-cores-amx", "Training"),
        ("detection/davidson", "task-head"),
    ],
)
def test_a_report_is_drawn_of_any_result(
    otter_here: Otter, repository: Path, tmp_path: Path, result: str, says: str
) -> None:
    shutil.copy(repository / "results" / f"{result}.json", tmp_path / "result.json")
    done = otter_here("bench", "report", tmp_path)
    assert done.returncode == 0, done.stderr
    assert says in done.stdout and (tmp_path / "report.html").is_file()


def test_reports_need_no_torch(otter_here: Otter, arguments, tmp_path: Path) -> None:
    assert otter_here(*arguments["speedup"]).returncode == 0
    # None in place of a module makes its import fail.
    code = (
        "import sys; sys.modules['torch'] = None; from otter_cli.cli.main import main; exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "bench", "report", str(tmp_path / "speedup"), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_runs_are_compared_checked_and_rescored(
    otter_here: Otter, arguments, contestants, tmp_path: Path
) -> None:
    run, other = tmp_path / "preference", tmp_path / "other"
    assert otter_here(*arguments["preference"]).returncode == 0
    assert otter_here(*arguments["preference"], "--strength", 3, "--out", other).returncode == 0
    done = otter_here("bench", "compare", run, other, "--json")
    assert done.returncode == 0, done.stderr
    methods = {m["first"]: m["differences"] for m in json.loads(done.stdout)["methods"]}
    assert methods["plain"]["gold_reward"]["mean"] == 0
    page = otter_here("bench", "compare", run, other, "--methods", "insertion:args").stdout
    assert "args against insertion" in page and max(map(len, page.splitlines())) <= 100
    expect = tmp_path / "expectations.yaml"
    expect.write_text("expect: {plain: {tokens: {at_least: 1, at_most: 6}}}")
    assert otter_here("bench", "check", run, "--expect", expect).returncode == 0
    expect.write_text("expect: {plain: {tokens: {at_least: 100}}}")
    done = otter_here("bench", "check", run, "--expect", expect)
    assert done.returncode == 1 and "0 of 1 expectations hold" in done.stdout
    samples = (run / "samples.jsonl").read_bytes()
    rescored = otter_here("bench", "rescore", run, "--scorer", f"reward-model:{contestants.gold}")
    assert rescored.returncode == 0, rescored.stderr
    assert (run / "samples.jsonl").read_bytes() == samples
    refused = otter_here(
        "bench", "rescore", run, "--scorer", f"reward-model:{contestants.reward_model}"
    )
    assert refused.returncode == 2 and "the one that guides" in refused.stderr


def test_unlike_runs_are_not_compared(otter_here: Otter, arguments, tmp_path: Path) -> None:
    assert otter_here(*arguments["speedup"]).returncode == 0
    longer = [*arguments["speedup"], "--max-new-tokens", 9, "--out", tmp_path / "longer"]
    assert otter_here(*longer).returncode == 0
    done = otter_here("bench", "compare", tmp_path / "speedup", tmp_path / "longer")
    assert done.returncode == 2 and "differ in sampling.max_new_tokens" in done.stderr


def test_monitors_read_pairs_and_held_out_rows(
    otter_here: Otter, contestants: BenchmarkModels, tmp_path: Path
) -> None:
    rows = [(f"you are a friend {i}", f"you are a bastard {i}") for i in range(20)]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps({"chosen": a, "rejected": b}) + "\n" for a, b in rows))
    command = ["bench", "detection", contestants.graft, "--monitor", f"head={contestants.head}"]
    done = otter_here(*command, "--pairs", pairs, "--limit", 6, "--out", tmp_path / "pairs")
    assert done.returncode == 0, done.stderr
    assert "AUROC" in done.stdout and max(map(len, done.stdout.splitlines())) <= 100
    labelled = [{"text": text, "toxicity": i} for row in rows for i, text in enumerate(row)]
    (tmp_path / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "steps: 1\nsignals:\n  toxicity:\n    objective: classification\n    held_out: 0.5\n"
        "    train: {path: labelled.jsonl}\n"
    )
    done = otter_here(*command, "--recipe", recipe, "--out", tmp_path / "rows", "--json")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["benchmark"] == "detection" and 0 < data["settings"]["prompts"]["count"] < 40
    neither = otter_here(*command)
    assert neither.returncode == 2 and "either --recipe or --pairs" in neither.stderr
    unnamed = otter_here(*command, "--pairs", pairs, "--monitor", "head")
    assert unnamed.returncode == 2 and "no NAME=FOLDER" in unnamed.stderr


def test_prompts_of_messages_are_chatted_with_and_scored_again(
    otter_here: Otter, tiny_llama: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_llama, base)
    (base / "chat_template.jinja").write_text(TEMPLATES["BOS at every turn"])
    chatting = write_benchmark_models(base, tmp_path)
    rows = [{"messages": said("hi", "yes?", "go on")}, {"prompt": "hello"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [
        "bench", "preference", chatting.graft, "--prompts", tmp_path / "rows.jsonl",
        "--task-head", chatting.head, "--reward-model", chatting.reward_model,
        "--gold", chatting.gold, "--candidates", 4, "--max-new-tokens", 4,
        "--out", tmp_path / "run",
    ]  # fmt: skip
    refused = otter_here(*command)
    assert refused.returncode == 2 and "rows.jsonl, line 1: the prompt is a list" in refused.stderr
    done = otter_here(*command, "--chat", "--json")
    assert done.returncode == 0, done.stderr
    prompts = _lines(tmp_path / "run" / "prompts.jsonl")
    assert [prompt["messages"] for prompt in prompts] == [rows[0]["messages"], said("hello")]
    scores = _lines(tmp_path / "run" / "scores.jsonl")
    again = otter_here(
        "bench", "rescore", tmp_path / "run", "--scorer", f"reward-model:{chatting.gold}"
    )
    assert again.returncode == 0, again.stderr
    assert _lines(tmp_path / "run" / "scores.jsonl") == scores


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.open()]
