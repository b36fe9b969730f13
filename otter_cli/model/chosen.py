"""The positions that a training step reads: in the base's last layer nothing needs the others once
their keys and values are made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from otter_cli.model.joint import rows
from otter_cli.model.record import ACTIVE

if TYPE_CHECKING:
    from otter_cli.model.record import StreamRunner

# Of most of a batch there is little to leave out; where it stops paying was not measured.
_MOST = 0.5


class Chosen:
    """N positions, by their (texts, columns), of a batch of `texts` by `tokens`. Raises IndexError,
    as indexing a tensor does."""

    def __init__(self, at: tuple[Tensor, Tensor], texts: int, tokens: int) -> None:
        self.all = texts * tokens
        self.places = torch.arange(self.all, device=at[0].device).view(texts, tokens)[at]

    @property
    def few(self) -> bool:
        return len(self.places) <= _MOST * self.all

    def of(self, tensor: Tensor) -> Tensor:
        """[N, ...], of [texts, tokens, ...] or rows of it; rows of the chosen alone stay."""
        flat = rows(tensor)
        return flat[self.places] if len(flat) == self.all else flat

    def spread(self, found: Tensor, like: Tensor) -> Tensor:
        """What was found at the chosen positions, zeros at all others, [texts, tokens, ...]."""
        flat = rows(found)
        whole = flat.new_zeros(self.all, flat.shape[-1])
        whole[self.places] = flat
        return whole.view(*like.shape[:-1], -1)


class AtChosen:
    """The forward of a module in the base's last layer that treats each position by itself: where
    some are chosen, it runs at these alone, and nobody reads the zeros at the others."""

    def __init__(self, taps: StreamRunner, module: nn.Module) -> None:
        self.taps, self.forward = taps, module.forward
        module.__dict__["forward"] = self

    def __call__(self, hidden: Tensor, *more: Any, **named: Any) -> Any:
        record = ACTIVE.get()
        if record is None or record.taps is not self.taps or record.chosen is None:
            return self.forward(hidden, *more, **named)
        chosen = record.chosen
        found = self.forward(chosen.of(hidden)[None], *more, **named)
        if isinstance(found, tuple):  # experts give their router's scores too
            return chosen.spread(found[0], hidden), *found[1:]
        return chosen.spread(found, hidden)
