"""`otter train` as people and scripts call it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.training import REWARD, TOXICITY, small_graft, write_data, write_recipe


@pytest.fixture
def graft(tiny_llama: Path, tmp_path: Path) -> Path:
    write_data(tmp_path)
    return small_graft(tiny_llama, tmp_path / "graft", "reward", "toxicity")


def test_json_is_one_object_and_nothing_else(otter, graft: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, {"reward": REWARD, "toxicity": TOXICITY})
    done = otter("train", graft, "--recipe", recipe, "--json")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["steps"] == 6 and data["folder"] == str(graft)
    assert set(data["signals"]) == {"reward", "toxicity"}
    assert set(data["signals"]["reward"]["accuracy"]) == {"mean", "low", "high", "n"}
    assert data["seconds"] > 0 and data["trained_parameters"] > 0
    assert data["memory"]["activations"] > 0
    assert data["verify"]["verdict"] == "identical on disk"


def test_people_get_a_table(otter, graft: Path, tmp_path: Path) -> None:
    done = otter("train", graft, "--recipe", write_recipe(tmp_path), "--set", "steps=3", "--quiet")
    assert done.returncode == 0, done.stderr
    assert "3 steps" in done.stdout and "accuracy" in done.stdout
    assert "95 % interval" in done.stdout
    assert "training" not in done.stderr and "step" not in done.stderr


def test_the_model_card_says_data_figures_and_verdict(
    otter_here, graft: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, {"reward": {**REWARD, "validation": 0.1, "positions": "every"}})
    done = otter_here("train", graft, "--recipe", recipe, "--verify", "--json")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["verify"]["verdict"] == "exact by construction"
    card = Path(data["card"]).read_text()
    figure = data["signals"]["reward"]["accuracy"]
    assert f"| reward | accuracy | {figure['mean']:.4f} | {figure['low']:.4f} to " in card
    for part in ("train", "validation", "test"):
        assert (
            f"| reward | {part} | {data['data']['reward'][part]['rows']} | 0 | pairs.jsonl" in card
        )
    assert "| reward | bradley-terry | " in card and "positions: every" in card
    assert "Verdict: exact by construction." in card


def test_a_base_that_changed_while_training_fails(
    otter_here, graft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from otter_cli.training.loop import TrainingRun

    evaluate = TrainingRun.evaluate

    def damaging(run: TrainingRun, *arguments, **named) -> None:
        evaluate(run, *arguments, **named)
        weights = graft / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.unlink()  # a hard link of the base's
        weights.write_bytes(content)

    monkeypatch.setattr(TrainingRun, "evaluate", damaging)
    done = otter_here("train", graft, "--recipe", write_recipe(tmp_path), "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["verify"]["verdict"] == "different"


def test_find_lr_suggests_and_trains_nothing(otter_here, graft: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    done = otter_here("train", graft, "--recipe", recipe, "--find-lr")
    assert done.returncode == 0 and "steepest at learning_rate: " in done.stdout
    assert not (graft / "training").exists()
    done = otter_here("train", graft, "--recipe", recipe, "--find-lr", "--baseline", "head")
    assert done.returncode == 2 and "leave --baseline out" in done.stderr


def test_a_baseline(otter, graft: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, {"reward": REWARD, "toxicity": TOXICITY})
    done = otter(
        "train", graft, "--recipe", recipe, "--baseline", "separate", "--signal", "reward",
        "--to", tmp_path / "separate", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["baseline"] == "separate"
    assert (tmp_path / "separate" / "config.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "what", "hint"),
    [
        (["--set", "stesp=3"], "unknown key 'stesp'", "did you mean 'steps'?"),
        (["--set", "signals.reward.train.path=no.jsonl"], "'no.jsonl' not found", "check the path"),
        (["--set", "signals.reward.train.path=$NO_SUCH/a"], "$NO_SUCH is not set", "export"),
        (["--baseline", "prob"], "no baseline 'prob'", "one of head, probe"),
        (["--baseline", "head"], "--baseline and --to go together", "--to head-only"),
        (["--signal", "tox"], "the recipe has no signal 'tox'", "it has reward"),
    ],
)
def test_bad_usage_is_told(
    otter, graft: Path, tmp_path: Path, arguments: list[str], what: str, hint: str
) -> None:
    done = otter("train", graft, "--recipe", write_recipe(tmp_path), *arguments)
    assert done.returncode == 2
    assert "error: " in done.stderr and what in done.stderr and hint in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


def test_a_bad_line_is_numbered(otter, graft: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    with (tmp_path / "pairs.jsonl").open("a") as file:
        file.write('{"chosen": "a"}\n')
    done = otter("train", graft, "--recipe", recipe)
    assert done.returncode == 2
    assert "pairs.jsonl, line 65: no column 'rejected'" in done.stderr


def test_a_recipe_that_is_not_there(otter, graft: Path) -> None:
    done = otter("train", graft, "--recipe", "preference/paradetx")
    assert done.returncode == 2
    assert "did you mean preference/paradetox?" in done.stderr


@pytest.mark.slow
def test_ctrl_c_exits_130_and_resume_goes_on(otter, graft: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, steps=5000)
    command = [sys.executable, "-m", "otter_cli", "train", str(graft), "--recipe", str(recipe)]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ})
    log = graft / "training" / "metrics.jsonl"
    while not (log.exists() and log.read_text().count("\n") > 3):
        assert running.poll() is None
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, told = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "continue with --resume" in told and "interrupted" in told and "Traceback" not in told
    again = otter("train", graft, "--recipe", recipe)
    assert again.returncode == 2 and "holds an unfinished run" in again.stderr
    done = otter("train", graft, "--recipe", recipe, "--set", "steps=2", "--restart", "--json")
    assert json.loads(done.stdout)["steps"] == 2


def test_recipes_are_refused_without_torch(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, {"reward": {**REWARD, "positoins": "every"}})
    code = (
        "import sys\n"
        "from otter_cli.core.errors import OtterError\n"
        "from otter_cli.training.recipe import load_recipe\n"
        "try:\n"
        f"    load_recipe({str(recipe)!r})\n"
        "except OtterError as error:\n"
        "    print(error.hint, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("did you mean 'positions'?")
    assert done.stdout.endswith("False\n")
