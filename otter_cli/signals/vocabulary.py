"""Action values: a score for every token that could come next, out of one state (METHOD, 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from otter_cli.signals.config import SignalConfig
from otter_cli.signals.head import Head, Shapes, Unembedding, combine, rows_of

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Work:
    """Multiply-adds of reading action values at one position: `shared`, and `each` token."""

    shared: int
    each: int


class Vocabulary(Head):
    """Scores `[..., vocab]`. Low-rank (the default): `<s, w> + b + <U A s, e(token)>`, s = [y ; v],
    U A of rank `size`, e(token) the frozen unembedding's; or full, a row [y ; v] W_token + b_token
    for each token, where `size` is 0."""

    kind: ClassVar[str] = "vocabulary"
    # U is zero: as in LoRA one factor has to be something for either to move.
    drawn: ClassVar[frozenset[str]] = frozenset({"factor_base", "factor_inserted"})

    def shapes(self, signal: SignalConfig, hidden: int, inserted: int, vocab: int) -> Shapes:
        if not signal.size:
            return rows_of(vocab, hidden, inserted)
        rank = min(signal.size, hidden)
        shapes = rows_of(1, hidden, inserted)
        shapes |= {"factor_base": (rank, hidden), "factor_out": (hidden, rank)}
        if inserted:
            shapes["factor_inserted"] = (rank, inserted)
        return shapes

    def work(self, signal: SignalConfig, hidden: int, inserted: int) -> Work:
        state = hidden + inserted
        if not signal.size:
            return Work(shared=0, each=state)
        return Work(shared=state + min(signal.size, hidden) * (state + hidden), each=hidden)

    def forward(
        self,
        signal: SignalConfig,
        weights: Mapping[str, Tensor],
        base_state: Tensor,
        inserted_state: Tensor | None,
        unembedding: Unembedding,
    ) -> Tensor:
        scores = combine(weights, base_state, inserted_state)
        if not signal.size:
            return scores
        # The state's part is the same for every token: [..., 1] broadcasts.
        return scores + unembedding.product(_query(weights, base_state, inserted_state)).to(scores)

    def of_tokens(
        self,
        signal: SignalConfig,
        weights: Mapping[str, Tensor],
        base_state: Tensor,
        inserted_state: Tensor | None,
        unembedding: Unembedding,
        tokens: Tensor,
    ) -> Tensor:
        """The same for given tokens alone: states [..., d] and ids [..., k] give [..., k]."""
        if signal.size:
            query = _query(weights, base_state, inserted_state)
            scores = combine(weights, base_state, inserted_state)
            return scores + _dot(unembedding.rows(tokens).to(query), query)
        scores = weights["bias"][tokens] + _dot(
            weights["base"][tokens], base_state.to(weights["base"])
        )
        if "inserted" in weights and inserted_state is not None:
            scores = scores + _dot(weights["inserted"][tokens], inserted_state)
        return scores


def _query(
    weights: Mapping[str, Tensor], base_state: Tensor, inserted_state: Tensor | None
) -> Tensor:
    """`U A [y ; v]`, [..., d]: what the unembedding's rows are multiplied by."""
    import torch.nn.functional as F

    factor = F.linear(base_state.to(weights["factor_base"].dtype), weights["factor_base"])
    if "factor_inserted" in weights and inserted_state is not None:
        factor = factor + F.linear(inserted_state, weights["factor_inserted"])
    return F.linear(factor, weights["factor_out"])


def _dot(rows: Tensor, state: Tensor) -> Tensor:
    """Rows [..., k, d] against states [..., d]: [..., k]."""
    return (rows @ state.unsqueeze(-1)).squeeze(-1)
