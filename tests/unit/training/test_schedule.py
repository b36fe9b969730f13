"""The rate as a function of the step, and which tensors decay."""

from typing import Any

import pytest
import torch
from torch import nn

from otter_cli.training.recipe import Recipe
from otter_cli.training.schedule import make_optimiser, rate_at
from tests.support.training import REWARD


def recipe(**settings: Any) -> Recipe:
    values = {"steps": 100, "warmup": 10, "learning_rate": 1.0, "signals": {"reward": REWARD}}
    return Recipe.model_validate({**values, **settings})


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_warm_up_ends_at_the_peak(schedule: str) -> None:
    rates = [rate_at(step, recipe(schedule=schedule)) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert max(rates) == rates[10] == 1.0


def test_decays() -> None:
    assert rate_at(99, recipe(schedule="constant")) == 1.0
    assert rate_at(55, recipe(schedule="linear")) == pytest.approx(0.55)
    assert rate_at(55, recipe(schedule="cosine")) == pytest.approx(0.55)
    for schedule in ("linear", "cosine"):
        rates = [rate_at(step, recipe(schedule=schedule)) for step in range(10, 100)]
        assert rates == sorted(rates, reverse=True)
        assert 0.1 < rates[-1] < 0.12


def test_without_warm_up_the_first_step_is_at_the_peak() -> None:
    assert rate_at(0, recipe(warmup=0)) == 1.0


def test_only_matrices_decay() -> None:
    names = {"otter.main.layers.0.ffn.up.h.weight": True, "otter.main.norm.weight": False}
    names |= {"otter.main.embedding.weight": False, "otter.main.signals.reward.bias": False}
    parameters = {
        name: nn.Parameter(torch.ones((2, 2) if "up" in name or "embed" in name else (2,)))
        for name in names
    }
    optimiser = make_optimiser(parameters, recipe(weight_decay=0.5, learning_rate=0.1))
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    moved = {name: not torch.equal(p, torch.ones_like(p)) for name, p in parameters.items()}
    assert moved == names
