"""The optimiser (AdamW, or Muon with it), the learning-rate schedule, clipping, and the guard.

The learning rate is a function of the step alone. The guard stops a run that goes wrong and names
the tensor; the last good state stays on disk."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from math import cos, isfinite, pi
from typing import Any

import torch
from torch import Tensor, nn

from otter_cli.core.errors import CheckFailed
from otter_cli.training.recipe import Recipe
from otter_cli.training.sharding import local_shard, tensor_norms

# The learning rate at the end of a decaying schedule, as a share of the peak.
_FINAL_SHARE = 0.1


class CombinedOptimiser:
    """Several optimisers as one. Each parameter belongs to one of them."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    @property
    def state(self) -> dict[Tensor, dict[str, Tensor]]:
        """The state of each parameter, in its own optimiser: changes to it take effect there."""
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


def make_optimiser(parameters: Mapping[str, nn.Parameter], recipe: Recipe) -> CombinedOptimiser:
    """AdamW; or Muon for the stream's matrices, with updates as large as AdamW's (arXiv 2502.16982,
    2.2), and AdamW for the rest. Weight decay is for matrices alone: it would pull the scale of
    norms and biases, and the embeddings of unseen tokens, to zero."""
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
    if groups := [group for group in groups if group["params"]]:
        parts.append(torch.optim.AdamW(groups, rate, fused=True))
    return CombinedOptimiser(parts)


def set_learning_rate(optimiser: CombinedOptimiser, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate


def learning_rate_at(step: int, recipe: Recipe) -> float:
    """Learning rate of a step (from 0): linear warm-up, then constant, linear or cosine decay."""
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    left = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + cos(pi * done)) / 2}
    return recipe.learning_rate * (_FINAL_SHARE + (1 - _FINAL_SHARE) * left[recipe.schedule])


# Every tensor must have had a gradient by then. Tensors behind a zero output get one in 3 steps.
GRADIENT_STEPS = 20
# Losses are compared as means over this many steps.
_WINDOW = 10
_EXPLOSION_FACTOR = 10.0


class TrainingGuard:
    """Checks the loss and the gradients of each step, before the optimiser uses them."""

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], gradient_free: frozenset[str] = frozenset()
    ) -> None:
        self.parameters = parameters
        self.pending = set(parameters) - gradient_free
        self.first: list[float] = []
        self.recent: deque[float] = deque(maxlen=_WINDOW)

    def check(self, step: int, loss: float) -> tuple[list[Tensor], float]:
        """Returns the gradients and their common norm. Raises CheckFailed for values that are not
        finite, a loss that explodes, and parameters whose gradient is still zero after
        `GRADIENT_STEPS`."""
        names = list(self.parameters)
        whole = [_gradient_or_zeros(parameter) for parameter in self.parameters.values()]
        norms, gradients = tensor_norms(whole), [local_shard(gradient) for gradient in whole]
        total = norms.norm().item()
        if not (isfinite(loss) and isfinite(total)):
            broken = [names[i] for i in (~norms.isfinite()).nonzero().flatten().tolist()]
            where = f"; no finite gradient in {_first_and_count(broken)}" if broken else ""
            raise _stop_error(step, f"the loss is {loss:g}{where}")
        self._watch_loss(step, loss, names[int(norms.argmax())])
        self._watch_gradients(step, names, norms)
        return gradients, total

    def _watch_loss(self, step: int, loss: float, largest: str) -> None:
        self.recent.append(loss)
        if len(self.first) < _WINDOW:
            self.first.append(loss)
            return
        now, before = sum(self.recent) / _WINDOW, sum(self.first) / _WINDOW
        if now > _EXPLOSION_FACTOR * before:
            raise _stop_error(
                step, f"the loss grew from {before:.3g} to {now:.3g}; largest gradient: {largest}"
            )

    def _watch_gradients(self, step: int, names: list[str], norms: Tensor) -> None:
        if self.pending:
            nonzero = (norms > 0).tolist()
            self.pending -= {name for name, reached in zip(names, nonzero, strict=True) if reached}
        if self.pending and step + 1 == GRADIENT_STEPS:
            raise CheckFailed(
                f"after {GRADIENT_STEPS} steps no gradient has reached "
                + _first_and_count(sorted(self.pending)),
                hint="it would never change: graft with another --init, or without that part",
            )

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to decide as this one would."""
        return {"pending": sorted(self.pending), "first": self.first, "recent": list(self.recent)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.pending = set(state["pending"])
        self.first = list(state["first"])
        self.recent.extend(state["recent"])


def clip_gradients(gradients: list[Tensor], norm: float, limit: float) -> None:
    """Scales all gradients so that their common norm is at most `limit`."""
    if norm > limit:
        torch._foreach_mul_(gradients, limit / norm)


def _gradient_or_zeros(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _first_and_count(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _stop_error(step: int, why: str) -> CheckFailed:
    return CheckFailed(
        f"training stopped at step {step + 1}: {why}",
        hint="the last saved state is kept; with a lower learning_rate or clip, --restart",
    )
