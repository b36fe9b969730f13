"""The rate as a function of the step, and which tensors decay."""

from typing import Any

import pytest
import torch
from torch import nn

from otter_cli.training.optimiser import learning_rate_at, make_optimiser
from otter_cli.training.recipe import Recipe
from tests.support.training import REWARD


def recipe(**settings: Any) -> Recipe:
    values = {"steps": 100, "warmup": 10, "learning_rate": 1.0, "signals": {"reward": REWARD}}
    return Recipe.model_validate({**values, **settings})


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_warm_up_ends_at_the_peak(schedule: str) -> None:
    rates = [learning_rate_at(step, recipe(schedule=schedule)) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert max(rates) == rates[10] == 1.0


def test_decays() -> None:
    assert learning_rate_at(99, recipe(schedule="constant")) == 1.0
    assert learning_rate_at(55, recipe(schedule="linear")) == pytest.approx(0.55)
    assert learning_rate_at(55, recipe(schedule="cosine")) == pytest.approx(0.55)
    for schedule in ("linear", "cosine"):
        rates = [learning_rate_at(step, recipe(schedule=schedule)) for step in range(10, 100)]
        assert rates == sorted(rates, reverse=True)
        assert 0.1 < rates[-1] < 0.12


def test_without_warm_up_the_first_step_is_at_the_peak() -> None:
    assert learning_rate_at(0, recipe(warmup=0)) == 1.0


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


def test_muon_moves_the_stream_s_matrices_and_adamw_the_rest() -> None:
    """Muon's update has singular values near one, times 0.2 sqrt of the longer side (arXiv
    2502.16982, 2.2); AdamW's first is the sign of the gradient."""
    draw = torch.Generator().manual_seed(0)
    shapes = {
        "otter.main.layers.0.ffn.up.h.weight": (6, 16),
        "otter.main.embedding.weight": (9, 4),
        "otter.main.signals.reward.base": (1, 16),
        "otter.main.norm.weight": (4,),
    }
    parameters = {name: nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}
    asked = recipe(optimizer="muon", learning_rate=0.1, weight_decay=0.0)
    optimiser = make_optimiser(parameters, asked)
    for parameter in parameters.values():
        parameter.grad = torch.randn(parameter.shape, generator=draw)
    gradients = {name: p.grad for name, p in parameters.items()}
    optimiser.step()
    matrix, *others = shapes
    singular = torch.linalg.svdvals(parameters[matrix].detach()) / (0.1 * 0.2 * 16**0.5)
    assert singular.min() > 0.6 and singular.max() < 1.3
    for name in others:
        torch.testing.assert_close(parameters[name].detach(), -0.1 * gradients[name].sign())
    assert all(optimiser.state[parameter] for parameter in parameters.values())
