"""A run that was stopped, by Ctrl-C or by SIGKILL, ends in the very bits of one that was not."""

import random
from pathlib import Path

import pytest

from otter_cli.graft.manifest import Manifest
from otter_cli.graft.storage import TENSORS_FILE
from otter_cli.training.run import train
from tests.support.training import ctrl_c_in_step, small_recipe
from tests.support.training_kills import SIGNALS, joint_graft, kill_runs, losses, same_tensors


@pytest.mark.parametrize(("evaluate_every", "optimizer"), [(0, "adamw"), (4, "muon")])
def test_twenty_steps_are_ten_and_ten(
    tiny_llama: Path, tmp_path: Path, evaluate_every: int, optimizer: str
) -> None:
    recipe = small_recipe(
        tmp_path, SIGNALS, steps=20, evaluate_every=evaluate_every, optimizer=optimizer
    )
    whole, halves = (
        joint_graft(tiny_llama, tmp_path / "one"),
        joint_graft(tiny_llama, tmp_path / "two"),
    )
    train(whole, recipe)
    with ctrl_c_in_step(10):
        train(halves, recipe)
    assert Manifest.read(halves).training["reward"].steps == 10
    train(halves, recipe, resume=True)
    same_tensors(whole / TENSORS_FILE, halves / TENSORS_FILE)
    assert losses(whole) == losses(halves)
    state = "training/state-00000020.safetensors"
    same_tensors(whole / state, halves / state)


def test_the_separate_model_resumes_to_the_bit_too(tiny_llama: Path, tmp_path: Path) -> None:
    graft = joint_graft(tiny_llama, tmp_path / "graft")
    recipe = small_recipe(tmp_path, steps=8)
    train(graft, recipe, baseline="separate", to=tmp_path / "one")
    with ctrl_c_in_step(3):
        train(graft, recipe, baseline="separate", to=tmp_path / "two")
    train(graft, recipe, baseline="separate", to=tmp_path / "two", resume=True)
    same_tensors(tmp_path / "one" / "model.safetensors", tmp_path / "two" / "model.safetensors")


@pytest.mark.slow
def test_five_kills_at_random_moments_cost_nothing_but_time(
    tiny_llama: Path, tmp_path: Path
) -> None:
    assert kill_runs(tiny_llama, tmp_path, 1, random.Random())["runs"]
