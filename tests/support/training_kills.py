"""SIGKILL at random moments of training runs. Each run is resumed, and its end is compared with
that of an uninterrupted run, bit for bit.

`make test-kill` kills fifty times and writes results/training/kills.json.
"""

import random
import signal
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from otter_cli.core.jsonlines import read_jsonlines
from otter_cli.graft.manifest import Manifest
from otter_cli.graft.storage import TENSORS_FILE
from otter_cli.training.run import train
from otter_cli.training.state import StateFolder
from tests.support.checkpoints import write_checkpoint
from tests.support.kills import killed_after, write_counts
from tests.support.training import FUTURE, REWARD, TOXICITY, small_graft, small_recipe

SIGNALS = {"reward": REWARD, "toxicity": TOXICITY, "future": FUTURE}
# Kills per run. Each finds the run nearer to its end than the one before.
KILLS_PER_RUN = 5


def joint_graft(base: Path, out: Path) -> Path:
    return small_graft(base, out, "reward", "toxicity", "future:2")


def same_tensors(first_file: Path, second_file: Path) -> None:
    first, second = load_file(first_file), load_file(second_file)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def losses(folder: Path) -> list[Any]:
    records = read_jsonlines(folder / "training" / "metrics.jsonl")
    return [(record["step"], record["loss"]) for record in records if "loss" in record]


def kill_runs(base: Path, folder: Path, kills: int, draw: random.Random) -> dict[str, Any]:
    """Kills running processes at least `kills` times. Raises AssertionError if a run does not end
    with the same bits as an uninterrupted one."""
    recipe = small_recipe(folder, SIGNALS, steps=30, save_every=3, evaluate_every=5)
    whole = joint_graft(base, folder / "whole")
    train(whole, recipe)
    # The first run warms this process up, and takes much longer than the forked ones.
    began = time.monotonic()
    train(joint_graft(base, folder / "warm"), recipe)
    duration = time.monotonic() - began
    counts: Counter[str] = Counter()
    saved: Counter[int] = Counter()
    while counts["killed"] < kills:
        killed = joint_graft(base, folder / f"run-{counts['runs']}")
        work = partial(train, killed, recipe, resume=True)
        for _ in range(KILLS_PER_RUN):
            status = killed_after(draw.uniform(0.1, 0.7) * duration, work)
            assert status in (0, signal.SIGKILL), status
            counts["killed" if status else "finished before it was"] += 1
            # The folder is usable at any time: its tensors are those that otter.json records.
            Manifest.read(killed).check_tensors(killed)
            notes = StateFolder(killed).metadata()
            saved[notes["step"] if notes else 0] += 1
        train(killed, recipe, resume=True)
        same_tensors(whole / TENSORS_FILE, killed / TENSORS_FILE)
        assert losses(whole) == losses(killed)
        assert Manifest.read(killed).training == Manifest.read(whole).training
        counts["runs"] += 1
    steps = {str(step): saved[step] for step in sorted(saved)}
    return {**counts, "bit-equal runs": counts["runs"], "kills by the step saved": steps}


def main(kills: int, to: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        write_checkpoint(Path(name) / "base", "llama")
        counts = kill_runs(Path(name) / "base", Path(name), kills, random.Random())
    write_counts(counts, to, "test-kill")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
