"""The heads: signal = head([y ; v]), y the base's final normed state, v the insertion's (METHOD, 1
and 3).

A kind is a class with the shapes of its tensors (no torch) and its forward. The concatenation is
two products,
so that y and v stay two tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

from otter_cli.signals.config import SignalConfig

if TYPE_CHECKING:
    from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


class Linear:
    """Scores `[..., size]` linear in [y ; v]; one attribute drops the last dimension."""

    kind: ClassVar[str] = "value"

    def shapes(self, signal: SignalConfig, hidden: int, inserted: int) -> Shapes:
        shapes: Shapes = {"base": (signal.size, hidden), "bias": (signal.size,)}
        if inserted:
            shapes["inserted"] = (signal.size, inserted)
        return shapes

    def forward(
        self,
        signal: SignalConfig,
        weights: Mapping[str, Tensor],
        base_state: Tensor,
        inserted_state: Tensor | None,
        unembed: Callable[[Tensor], Tensor],
    ) -> Tensor:
        scores = combine(weights, base_state, inserted_state)
        return scores.squeeze(-1) if signal.size == 1 and self.kind == "value" else scores


class Classes(Linear):
    """Multi-label logits `[..., classes]`; probabilities are their sigmoid."""

    kind: ClassVar[str] = "classes"


class Future:
    """Logits `[..., n, vocab]` of tokens t+2 ... t+n+1: a SiLU residual block each, then the base's
    frozen
    unembedding (Medusa, arXiv 2401.10774, section 2.1; there on y alone)."""

    kind: ClassVar[str] = "future"

    def shapes(self, signal: SignalConfig, hidden: int, inserted: int) -> Shapes:
        rows = signal.size * hidden
        shapes: Shapes = {"base": (rows, hidden), "bias": (rows,)}
        if inserted:
            shapes["inserted"] = (rows, inserted)
        return shapes

    def forward(
        self,
        signal: SignalConfig,
        weights: Mapping[str, Tensor],
        base_state: Tensor,
        inserted_state: Tensor | None,
        unembed: Callable[[Tensor], Tensor],
    ) -> Tensor:
        import torch.nn.functional as F

        block = combine(weights, base_state, inserted_state).unflatten(-1, (signal.size, -1))
        return unembed(base_state.unsqueeze(-2).to(block.dtype) + F.silu(block))


def combine(
    weights: Mapping[str, Tensor], base_state: Tensor, inserted_state: Tensor | None
) -> Tensor:
    """`[y ; v] W + b` without the concatenation."""
    import torch.nn.functional as F

    weight = weights["base"]
    out = F.linear(base_state.to(weight.dtype), weight, weights["bias"])
    if "inserted" in weights and inserted_state is not None:
        out = out + F.linear(inserted_state, weights["inserted"])
    return out


HEADS: dict[str, Linear | Future] = {head.kind: head for head in (Linear(), Classes(), Future())}
