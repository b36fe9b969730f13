"""A run that was stopped, by Ctrl-C or by SIGKILL, ends in the very bits of one that was not."""

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from otter_cli.core.jsonlines import read_jsonlines
from otter_cli.insertion import TENSORS, Manifest
from otter_cli.training import Recipe, train
from tests.support.training import (
    FUTURE,
    REWARD,
    TOXICITY,
    ctrl_c_in_step,
    small_graft,
    small_recipe,
)

SIGNALS = {"reward": REWARD, "toxicity": TOXICITY, "future": FUTURE}


def _graft(base: Path, out: Path) -> Path:
    return small_graft(base, out, "reward", "toxicity", "future:2")


def _same_tensors(one: Path, other: Path) -> None:
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def _losses(folder: Path) -> list[Any]:
    records = read_jsonlines(folder / "training" / "metrics.jsonl")
    return [(record["step"], record["loss"]) for record in records if "loss" in record]


@pytest.mark.parametrize("evaluate_every", [0, 4])
def test_twenty_steps_are_ten_and_ten(
    tiny_llama: Path, tmp_path: Path, evaluate_every: int
) -> None:
    recipe = small_recipe(tmp_path, SIGNALS, steps=20, evaluate_every=evaluate_every)
    whole, halves = _graft(tiny_llama, tmp_path / "one"), _graft(tiny_llama, tmp_path / "two")
    train(whole, recipe)
    with ctrl_c_in_step(10):
        train(halves, recipe)
    assert Manifest.read(halves).training["reward"].steps == 10
    train(halves, recipe, resume=True)
    _same_tensors(whole / TENSORS, halves / TENSORS)
    assert _losses(whole) == _losses(halves)
    state = "training/state-00000020.safetensors"
    _same_tensors(whole / state, halves / state)


def test_the_separate_model_resumes_to_the_bit_too(tiny_llama: Path, tmp_path: Path) -> None:
    graft = _graft(tiny_llama, tmp_path / "graft")
    recipe = small_recipe(tmp_path, steps=8)
    train(graft, recipe, baseline="separate", to=tmp_path / "one")
    with ctrl_c_in_step(3):
        train(graft, recipe, baseline="separate", to=tmp_path / "two")
    train(graft, recipe, baseline="separate", to=tmp_path / "two", resume=True)
    _same_tensors(tmp_path / "one" / "model.safetensors", tmp_path / "two" / "model.safetensors")


def _killed_after(seconds: float, folder: Path, recipe: Recipe) -> int:
    """The exit status of a training process that is killed, if it is still there by then."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            train(folder, recipe, resume=True)
            code = 0
        finally:
            os._exit(code)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


@pytest.mark.slow
def test_five_kills_at_random_moments_cost_nothing_but_time(
    tiny_llama: Path, tmp_path: Path
) -> None:
    recipe = small_recipe(tmp_path, SIGNALS, steps=30, save_every=3, evaluate_every=5)
    whole, killed = _graft(tiny_llama, tmp_path / "one"), _graft(tiny_llama, tmp_path / "two")
    began = time.monotonic()
    train(whole, recipe)
    duration = time.monotonic() - began
    draw, statuses = random.Random(), []
    for _ in range(5):
        statuses.append(_killed_after(draw.uniform(0.1, 0.7) * duration, killed, recipe))
        # Usable at any time: what otter.json records is what lies there.
        Manifest.read(killed).check_tensors(killed)
    assert all(status in (0, signal.SIGKILL) for status in statuses)
    assert signal.SIGKILL in statuses
    train(killed, recipe, resume=True)
    _same_tensors(whole / TENSORS, killed / TENSORS)
    assert _losses(whole) == _losses(killed)
    assert Manifest.read(killed).training == Manifest.read(whole).training
