"""SIGKILL at random moments of training runs, each resumed, the end held against an uninterrupted
run's bits. Fifty of them: `make test-kill`, which writes results/training/kills.json.
"""

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from otter_cli.core.jsonlines import read_jsonlines
from otter_cli.core.provenance import provenance
from otter_cli.graft.manifest import Manifest
from otter_cli.graft.storage import TENSORS_FILE
from otter_cli.training.run import train
from otter_cli.training.state import StateFolder
from tests.support.checkpoints import write_checkpoint
from tests.support.training import FUTURE, REWARD, TOXICITY, small_graft, small_recipe

SIGNALS = {"reward": REWARD, "toxicity": TOXICITY, "future": FUTURE}
# A run takes so many of them: the next one finds it nearer to its end.
KILLS_PER_RUN = 5


def joint_graft(base: Path, out: Path) -> Path:
    return small_graft(base, out, "reward", "toxicity", "future:2")


def same_tensors(one: Path, other: Path) -> None:
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def losses(folder: Path) -> list[Any]:
    records = read_jsonlines(folder / "training" / "metrics.jsonl")
    return [(record["step"], record["loss"]) for record in records if "loss" in record]


def killed_after(seconds: float, work: Callable[[], object]) -> int:
    """The exit status of a process at `work`, forked from this warm one, that is killed if it is
    still there by then."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def kill_runs(base: Path, folder: Path, kills: int, draw: random.Random) -> dict[str, Any]:
    """At least `kills` kills that met a living run. Raises AssertionError where a run does not end
    in the bits of one that nothing stopped."""
    recipe = small_recipe(folder, SIGNALS, steps=30, save_every=3, evaluate_every=5)
    whole = joint_graft(base, folder / "whole")
    train(whole, recipe)
    # The first run warms this process up, and takes much longer than the forked ones to come.
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
            # Usable at any time: what otter.json records is what lies there.
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
        found = kill_runs(Path(name) / "base", Path(name), kills, random.Random())
    to.parent.mkdir(parents=True, exist_ok=True)
    record = {**found, "provenance": provenance(["make", "test-kill"])}
    to.write_text(json.dumps(record, indent=2) + "\n")
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
