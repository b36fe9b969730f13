"""The optimiser, AdamW or Muon with it, and a rate that is a function of the step alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import cos, pi
from typing import Any

import torch
from torch import Tensor, nn

from otter_cli.training.recipe import Recipe

# Where a decaying schedule ends, as a share of the peak.
_FLOOR = 0.1


class Optimisers:
    """Several optimisers as one, each with parameters of its own."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    @property
    def state(self) -> dict[Tensor, dict[str, Tensor]]:
        """What each parameter's own optimiser remembers of it: written to, it remembers that."""
        return {
            parameter: part.state[parameter]
            for part in self.parts
            for group in part.param_groups
            for parameter in group["params"]
        }

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad()


def make_optimiser(parameters: Mapping[str, nn.Parameter], recipe: Recipe) -> Optimisers:
    """Weight decay for matrices only: norms and biases have a scale to keep, embeddings and
    unseen tokens would be pulled to zero. Muon takes the stream's matrices, with updates as large
    as AdamW's (arXiv 2502.16982, 2.2), and leaves it the rest."""
    decayed = {name: p for name, p in parameters.items() if p.ndim > 1 and "embed" not in name}
    rest = [p for name, p in parameters.items() if name not in decayed]
    rate, decay = recipe.learning_rate, recipe.weight_decay
    parts: list[torch.optim.Optimizer] = []
    if recipe.optimizer == "muon":
        inner = {name for name, p in decayed.items() if p.ndim == 2 and ".signals." not in name}
        if inner:
            matrices = [decayed.pop(name) for name in sorted(inner)]
            parts.append(
                torch.optim.Muon(matrices, rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
            )
    groups = [
        {"params": list(decayed.values()), "weight_decay": decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    kept = [group for group in groups if group["params"]]
    return Optimisers([*parts, *([torch.optim.AdamW(kept, rate, fused=True)] if kept else [])])


def set_rate(optimiser: Optimisers, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate


def rate_at(step: int, recipe: Recipe) -> float:
    """Learning rate of a step (from 0): linear warm-up, then constant, linear or cosine decay."""
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    left = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + cos(pi * done)) / 2}
    return recipe.learning_rate * (_FLOOR + (1 - _FLOOR) * left[recipe.schedule])
