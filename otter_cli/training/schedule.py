"""The optimiser: AdamW in two groups, and a learning rate that is a function of the step alone."""

from __future__ import annotations

from collections.abc import Mapping
from math import cos, pi

import torch
from torch import nn

from otter_cli.training.recipe import Recipe

# Where a decaying schedule ends, as a share of the peak.
_FLOOR = 0.1


def make_optimiser(parameters: Mapping[str, nn.Parameter], recipe: Recipe) -> torch.optim.AdamW:
    """Weight decay for matrices only: norms and biases have a scale to keep, embeddings and
    unseen tokens would be pulled to zero."""
    decayed = [p for name, p in parameters.items() if p.ndim > 1 and "embed" not in name]
    rest = [p for name, p in parameters.items() if p.ndim <= 1 or "embed" in name]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], recipe.learning_rate)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate


def rate_at(step: int, recipe: Recipe) -> float:
    """Learning rate of a step (from 0): linear warm-up, then constant, linear or cosine decay."""
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    left = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + cos(pi * done)) / 2}
    return recipe.learning_rate * (_FLOOR + (1 - _FLOOR) * left[recipe.schedule])
