"""`torchrun ... otter train`: two processes say what one says, and one of them writes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule
from torch.testing import assert_close

from otter_cli.core.jsonlines import read_jsonlines
from otter_cli.graft.manifest import Manifest
from otter_cli.graft.storage import TENSORS_FILE
from tests.support.training import FUTURE, REWARD, TOXICITY, small_graft, write_data, write_recipe

pytestmark = pytest.mark.slow
SIGNALS = {
    "reward": {**REWARD, "positions": "every", "validation": 0.2},
    "toxicity": TOXICITY,
    "future": FUTURE,
}
SETTINGS = {"steps": 12, "batch_size": 6, "evaluate_every": 4, "best": "reward/accuracy"}


def _command(*arguments: object, processes: int) -> list[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [sys.executable, *launch, "-m", "otter_cli", "train", *map(str, arguments)]


def _train(*arguments: object, processes: int) -> subprocess.CompletedProcess[str]:
    command = _command(*arguments, processes=processes)
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ}, check=False
    )


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    write_data(tmp_path)
    return write_recipe(tmp_path, SIGNALS, **SETTINGS)


@pytest.fixture
def alone(otter_here, tiny_llama: Path, tmp_path: Path, recipe: Path) -> Path:
    """The same run by one process."""
    folder = small_graft(tiny_llama, tmp_path / "alone", "reward", "toxicity", "future:2")
    assert otter_here("train", folder, "--recipe", recipe).returncode == 0
    return folder


def _numbers(folder: Path) -> list[list[float]]:
    """Losses, gradient norm over 10, tokens, and held-out figures, by line of the log."""
    found = []
    for record in read_jsonlines(folder / "training" / "metrics.jsonl"):
        figures = record.get("evaluation", {}).values()
        means = [value["mean"] for figure in figures for value in figure.values()]
        losses = record.get("loss", {}).values()
        found.append([*losses, record.get("gradient", 0) / 10, record.get("tokens", 0), *means])
    return found


@pytest.mark.parametrize("options", [[], ["--shard"]], ids=["data parallel", "in shards"])
def test_two_processes_train_as_one(
    alone: Path, tiny_llama: Path, tmp_path: Path, recipe: Path, options: list[str]
) -> None:
    folder = small_graft(tiny_llama, tmp_path / "two", "reward", "toxicity", "future:2")
    done = _train(folder, "--recipe", recipe, "--json", *options, processes=2)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["steps"] == 12 and outcome["verify"]["verdict"] == "identical on disk"
    one, two = _numbers(alone), _numbers(folder)
    assert len(one) == len(two) and len(one[0]) > 4
    for theirs, ours in zip(one, two, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5, rel=0)
    assert_close(
        load_file(folder / TENSORS_FILE), load_file(alone / TENSORS_FILE), atol=1e-5, rtol=1e-4
    )
    assert Manifest.read(folder).training.keys() == SIGNALS.keys()
    # Every line of talk once, every file once.
    assert done.stderr.count("step 4 of 12: smoothed loss") == 1
    files = [{p.relative_to(f).as_posix() for p in f.rglob("*")} for f in (alone, folder)]
    assert files[0] == files[1]


def test_a_run_in_shards_is_resumed_bit_for_bit(
    tiny_llama: Path, tmp_path: Path, recipe: Path
) -> None:
    folder = small_graft(tiny_llama, tmp_path / "two", "reward", "toxicity", "future:2")
    inserted = sum(tensor.numel() for tensor in load_file(folder / TENSORS_FILE).values()) * 4
    done = _train(folder, "--recipe", recipe, "--shard", processes=2)
    (half,) = re.findall(r"and ([\d.]+) kB of the insertion's", done.stderr)
    assert float(half) * 1000 == pytest.approx(inserted / 2, rel=0.02)
    whole = load_file(folder / TENSORS_FILE)
    states = folder / "training"
    last = load_file(states / "state-00000012.safetensors")
    (states / "state-00000012.safetensors").unlink()  # as if it had been killed before
    done = _train(folder, "--recipe", recipe, "--shard", "--resume", processes=2)
    assert "going on after step 10" in done.stderr, done.stderr
    again = load_file(states / "state-00000012.safetensors")
    assert_close(again, last, atol=0, rtol=0)
    assert_close(load_file(folder / TENSORS_FILE), whole, atol=0, rtol=0)


def test_a_run_of_two_is_resumed_by_one(
    otter_here, alone: Path, tiny_llama: Path, tmp_path: Path, recipe: Path
) -> None:
    folder = small_graft(tiny_llama, tmp_path / "two", "reward", "toxicity", "future:2")
    baseline = ["--baseline", "head", "--to", tmp_path / "head"]
    done = _train(folder, "--recipe", recipe, *baseline, processes=2)
    assert done.returncode == 0 and (tmp_path / "head" / TENSORS_FILE).is_file(), done.stderr
    assert _train(folder, "--recipe", recipe, processes=2).returncode == 0
    again = otter_here("train", folder, "--recipe", recipe, "--resume", "--json")
    assert json.loads(again.stdout)["steps"] == 12
    assert_close(
        load_file(folder / TENSORS_FILE), load_file(alone / TENSORS_FILE), atol=1e-4, rtol=1e-3
    )


def test_what_does_not_divide_or_shard_is_refused(
    otter_here, tiny_llama: Path, tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = small_graft(tiny_llama, tmp_path / "graft", "reward", "toxicity", "future:2")
    done = _train(folder, "--recipe", recipe, "--set", "batch_size=5", processes=2)
    assert done.returncode != 0
    assert "batch_size is 5, which 2 processes" in done.stderr and "take 4 or 6" in done.stderr
    assert not (folder / "training").exists()
    done = otter_here("train", folder, "--recipe", recipe, "--shard")
    assert done.returncode == 2 and "--shard needs several processes" in done.stderr
    with monkeypatch.context() as older:
        older.delattr(FSDPModule, "set_force_sum_reduction_for_comms")
        done = otter_here("train", folder, "--recipe", recipe, "--shard")
    assert done.returncode == 2 and "use a later torch" in done.stderr
    refused = {"optimizer=muon": "muon orthogonalises whole", "quantize=int8": "int8 packs them"}
    for setting, why in refused.items():
        done = _train(folder, "--recipe", recipe, "--shard", "--set", setting, processes=2)
        assert why in done.stderr


def test_ctrl_c_saves_one_state_of_all(
    otter_here, tiny_llama: Path, tmp_path: Path, recipe: Path
) -> None:
    folder = small_graft(tiny_llama, tmp_path / "graft", "reward", "toxicity", "future:2")
    long = ["--recipe", recipe, "--set", "steps=5000", "--set", "save_every=5000"]
    command = _command(folder, *long, "--set", "evaluate_every=5000", processes=2)
    # A group of its own, as a terminal gives: Ctrl-C goes to torchrun and to all that it started.
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as run:
        log = folder / "training" / "metrics.jsonl"
        while not (log.exists() and log.read_text().count("\n") > 4):
            assert run.poll() is None
            time.sleep(0.05)
        os.killpg(run.pid, signal.SIGINT)
        _, told = run.communicate(timeout=60)
    assert told.count("continue with --resume") == 1
    (state,) = (folder / "training").glob("state-*.safetensors")
    stopped = int(state.stem.partition("-")[2])
    assert Manifest.read(folder).training["reward"].steps == stopped > 3
    again = ["--set", f"steps={stopped + 2}", "--set", "schedule=constant"]
    assert otter_here("train", folder, "--recipe", recipe, *again).returncode == 2
    done = otter_here("train", folder, "--recipe", recipe, *again, "--restart", "--json")
    assert json.loads(done.stdout)["steps"] == stopped + 2
