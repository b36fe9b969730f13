"""What a head is: the shapes of its tensors (no torch), and its forward over [y ; v], y the base's
final normed state, v the insertion's (METHOD, 1 and 3).

The concatenation is two products, so that y and v stay two tensors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Protocol

from otter_cli.signals.config import SignalConfig

if TYPE_CHECKING:
    from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


class Unembedding(Protocol):
    """The base's frozen output matrix, a row e(token) for each token of the vocabulary."""

    def logits(self, state: Tensor) -> Tensor:
        """What the base itself would say of states [..., d], its scales and cap included."""

    def product(self, state: Tensor) -> Tensor:
        """`<state, e(token)>` for every token, [..., vocab]."""

    def rows(self, tokens: Tensor) -> Tensor:
        """e(token), [..., d]."""


class Head(ABC):
    """One kind of signal. A new one reads zero, its output tensors being zero; `drawn` names
    those that are not, so that gradients pass."""

    kind: ClassVar[str]
    drawn: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def shapes(self, signal: SignalConfig, hidden: int, inserted: int, vocab: int) -> Shapes: ...

    @abstractmethod
    def forward(
        self,
        signal: SignalConfig,
        weights: Mapping[str, Tensor],
        base_state: Tensor,
        inserted_state: Tensor | None,
        unembedding: Unembedding,
    ) -> Tensor:
        """The signal at states [..., d] and [..., D]."""


def rows_of(rows: int, hidden: int, inserted: int) -> Shapes:
    """The tensors of `[y ; v] W + b` with so many outputs."""
    shapes: Shapes = {"base": (rows, hidden), "bias": (rows,)}
    if inserted:
        shapes["inserted"] = (rows, inserted)
    return shapes


def combine(
    weights: Mapping[str, Tensor], base_state: Tensor, inserted_state: Tensor | None
) -> Tensor:
    """`[y ; v] W + b` without the concatenation."""
    import torch.nn.functional as F

    weight = weights["base"]
    out = F.linear(base_state.to(weight.dtype), weight, weights["bias"])
    if "inserted" in weights and inserted_state is not None:
        out = out + F.linear(inserted_state.to(weight.dtype), weights["inserted"])
    return out
