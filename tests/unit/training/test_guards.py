"""What stops a run, and that the tensor is named."""

import json
from math import inf, nan

import pytest
import torch
from torch import nn

from otter_cli.core.errors import CheckFailed
from otter_cli.training.optimiser import GRADIENT_STEPS, TrainingGuard, clip_gradients


def parameters(**gradients: float | None) -> dict[str, nn.Parameter]:
    made = {}
    for name, gradient in gradients.items():
        made[name] = nn.Parameter(torch.ones(3))
        if gradient is not None:
            made[name].grad = torch.full((3,), gradient)
    return made


def watch(guard: TrainingGuard, steps: range, loss: float) -> None:
    for step in steps:
        guard.check(step, loss)


def test_the_norm_is_of_all_gradients_together() -> None:
    guard = TrainingGuard(parameters(one=3.0, two=4.0))
    gradients, norm = guard.check(0, 0.5)
    assert norm == pytest.approx(5 * 3**0.5)
    clip_gradients(gradients, norm, 1.0)
    assert torch.cat(gradients).norm().item() == pytest.approx(1.0)
    assert torch.equal(guard.parameters["one"].grad, gradients[0]), "clipped in place"


def test_a_small_gradient_is_left_alone() -> None:
    guard = TrainingGuard(parameters(one=0.1))
    gradients, norm = guard.check(0, 0.5)
    clip_gradients(gradients, norm, 1.0)
    assert torch.equal(gradients[0], torch.full((3,), 0.1))


@pytest.mark.parametrize("bad", [nan, inf])
def test_a_gradient_that_is_not_finite_names_its_tensor(bad: float) -> None:
    guard = TrainingGuard(parameters(fine=1.0, broken=bad, other=bad))
    with pytest.raises(CheckFailed, match="step 8: .* no finite gradient in broken and 1 more"):
        guard.check(7, 0.5)


def test_a_loss_that_is_not_finite_stops() -> None:
    with pytest.raises(CheckFailed, match="the loss is nan$"):
        TrainingGuard(parameters(one=1.0)).check(0, nan)


def test_an_exploding_loss_stops_and_names_the_largest_gradient() -> None:
    guard = TrainingGuard(parameters(calm=1.0, wild=9.0))
    watch(guard, range(12), 0.7)
    with pytest.raises(CheckFailed, match="grew from 0.7 to .*largest gradient: wild"):
        watch(guard, range(12, 30), 50.0)


def test_one_bad_batch_is_no_explosion() -> None:
    guard = TrainingGuard(parameters(one=1.0))
    for step in range(GRADIENT_STEPS * 2):
        guard.check(step, 30.0 if step == 15 else 0.7)


@pytest.mark.parametrize("gradient", [0.0, None])
def test_a_tensor_that_nothing_reaches_is_named(gradient: float | None) -> None:
    guard = TrainingGuard(parameters(reached=1.0, dead=gradient))
    with pytest.raises(CheckFailed, match="after 20 steps no gradient has reached dead"):
        watch(guard, range(GRADIENT_STEPS), 0.5)


def test_what_an_initialisation_explains_is_let_through() -> None:
    guard = TrainingGuard(parameters(reached=1.0, dead=0.0), frozenset({"dead"}))
    watch(guard, range(GRADIENT_STEPS + 5), 0.5)


def test_a_resumed_guard_judges_as_the_first_would_have() -> None:
    made = parameters(one=1.0, late=0.0)
    first, resumed = TrainingGuard(made), TrainingGuard(made)
    watch(first, range(15), 0.7)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert resumed.state_dict() == first.state_dict()
    with pytest.raises(CheckFailed, match="late"):
        watch(resumed, range(15, GRADIENT_STEPS), 0.7)
