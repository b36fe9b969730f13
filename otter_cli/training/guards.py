"""Guards: a run that goes wrong stops, says which tensor, and leaves the last good state."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from otter_cli.core.errors import CheckFailed
from otter_cli.training.sharding import held
from otter_cli.training.sharding import norms as norms_of

# Every tensor must have had a gradient by then: an initialisation with zeros opens up in three.
GRADIENT_STEPS = 20
# Losses are compared as means over so many steps.
_WINDOW = 10
_EXPLOSION = 10.0


class Guard:
    """Looks at losses and gradients of each step, before the parameters move."""

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], gradient_free: frozenset[str] = frozenset()
    ) -> None:
        self.parameters = parameters
        self.pending = set(parameters) - gradient_free
        self.first: list[float] = []
        self.recent: deque[float] = deque(maxlen=_WINDOW)

    def check(self, step: int, loss: float) -> tuple[list[Tensor], float]:
        """The gradients and their norm. Raises CheckFailed for values that are not finite, a loss
        that explodes, and tensors that no gradient reaches."""
        names = list(self.parameters)
        whole = [_gradient(parameter) for parameter in self.parameters.values()]
        norms, gradients = norms_of(whole), [held(gradient) for gradient in whole]
        total = norms.norm().item()
        if not (isfinite(loss) and isfinite(total)):
            broken = [names[i] for i in (~norms.isfinite()).nonzero().flatten().tolist()]
            where = f"; no finite gradient in {_and_more(broken)}" if broken else ""
            raise _stopped(step, f"the loss is {loss:g}{where}")
        self._watch_loss(step, loss, names[int(norms.argmax())])
        self._watch_gradients(step, names, norms)
        return gradients, total

    def _watch_loss(self, step: int, loss: float, largest: str) -> None:
        self.recent.append(loss)
        if len(self.first) < _WINDOW:
            self.first.append(loss)
            return
        now, before = sum(self.recent) / _WINDOW, sum(self.first) / _WINDOW
        if now > _EXPLOSION * before:
            raise _stopped(
                step, f"the loss grew from {before:.3g} to {now:.3g}; largest gradient: {largest}"
            )

    def _watch_gradients(self, step: int, names: list[str], norms: Tensor) -> None:
        if self.pending:
            reached = (norms > 0).tolist()
            self.pending -= {name for name, fine in zip(names, reached, strict=True) if fine}
        if self.pending and step + 1 == GRADIENT_STEPS:
            raise CheckFailed(
                f"after {GRADIENT_STEPS} steps no gradient has reached "
                + _and_more(sorted(self.pending)),
                hint="it would stay as it is: another --init, or an insertion without that part",
            )

    def notes(self) -> dict[str, Any]:
        """What a resumed run must know to judge as this one would have."""
        return {"pending": sorted(self.pending), "first": self.first, "recent": list(self.recent)}

    def recall(self, notes: Mapping[str, Any]) -> None:
        self.pending = set(notes["pending"])
        self.first = list(notes["first"])
        self.recent.extend(notes["recent"])


def clip(gradients: list[Tensor], norm: float, limit: float) -> None:
    """Scales all gradients so that their common norm is at most `limit`."""
    if norm > limit:
        torch._foreach_mul_(gradients, limit / norm)


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _and_more(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _stopped(step: int, why: str) -> CheckFailed:
    return CheckFailed(
        f"training stopped at step {step + 1}: {why}",
        hint="the last saved state is kept; with a lower learning_rate or clip, --restart",
    )
