"""The heads: one class for each signal kind, and their registry.

A head reads [y ; v]: y is the base's final normed state, v the final state of the stream. The
product over the concatenation is computed as two products, so y and v stay two tensors. The shapes
need no torch. A new kind is one class here, its name in `config.py`, and one test.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar, Protocol

from otter_cli.signals.config import SignalConfig

if TYPE_CHECKING:
    from torch import Tensor


HeadShapes = dict[str, tuple[int, ...]]


class Unembedding(Protocol):
    """The base's frozen output matrix, a row e(token) for each token of the vocabulary."""

    def logits(self, state: Tensor) -> Tensor:
        """What the base itself would say of states [..., d], its scales and cap included."""

    def product(self, state: Tensor) -> Tensor:
        """`<state, e(token)>` for every token, [..., vocab]."""

    def rows(self, tokens: Tensor) -> Tensor:
        """e(token), [..., d]."""


class SignalHead(ABC):
    """One kind of signal. A new one reads zero, its output tensors being zero; `drawn` names
    those that are not, so that gradients pass."""

    kind: ClassVar[str]
    drawn: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def shapes(
        self, signal: SignalConfig, hidden: int, inserted: int, vocab: int
    ) -> HeadShapes: ...

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


def linear_shapes(rows: int, hidden: int, inserted: int) -> HeadShapes:
    """The tensors of `[y ; v] W + b` with so many outputs."""
    shapes: HeadShapes = {"base": (rows, hidden), "bias": (rows,)}
    if inserted:
        shapes["inserted"] = (rows, inserted)
    return shapes


def project_states(
    weights: Mapping[str, Tensor], base_state: Tensor, inserted_state: Tensor | None
) -> Tensor:
    """`[y ; v] W + b` without the concatenation."""
    import torch.nn.functional as F

    weight = weights["base"]
    out = F.linear(base_state.to(weight.dtype), weight, weights["bias"])
    if "inserted" in weights and inserted_state is not None:
        out = out + F.linear(inserted_state.to(weight.dtype), weights["inserted"])
    return out


@dataclass(frozen=True)
class ActionValueCost:
    """Multiply-adds of reading action values at one position: `shared`, and `each` token."""

    shared: int
    each: int


class VocabularyHead(SignalHead):
    """Scores `[..., vocab]`. Low-rank (the default): `<s, w> + b + <U A s, e(token)>`, s = [y ; v],
    U A of rank `size`, e(token) the frozen unembedding's; or full, a row [y ; v] W_token + b_token
    for each token, where `size` is 0."""

    kind: ClassVar[str] = "vocabulary"
    # U is zero: as in LoRA one factor has to be something for either to move.
    drawn: ClassVar[frozenset[str]] = frozenset({"factor_base", "factor_inserted"})

    def shapes(self, signal: SignalConfig, hidden: int, inserted: int, vocab: int) -> HeadShapes:
        if not signal.size:
            return linear_shapes(vocab, hidden, inserted)
        rank = min(signal.size, hidden)
        shapes = linear_shapes(1, hidden, inserted)
        shapes |= {"factor_base": (rank, hidden), "factor_out": (hidden, rank)}
        if inserted:
            shapes["factor_inserted"] = (rank, inserted)
        return shapes

    def work(self, signal: SignalConfig, hidden: int, inserted: int) -> ActionValueCost:
        state = hidden + inserted
        if not signal.size:
            return ActionValueCost(shared=0, each=state)
        return ActionValueCost(
            shared=state + min(signal.size, hidden) * (state + hidden), each=hidden
        )

    def forward(
        self,
        signal: SignalConfig,
        weights: Mapping[str, Tensor],
        base_state: Tensor,
        inserted_state: Tensor | None,
        unembedding: Unembedding,
    ) -> Tensor:
        scores = project_states(weights, base_state, inserted_state)
        if not signal.size:
            return scores
        # The state's part is the same for every token: [..., 1] broadcasts.
        return scores + unembedding.product(
            _low_rank_query(weights, base_state, inserted_state)
        ).to(scores)

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
            query = _low_rank_query(weights, base_state, inserted_state)
            scores = project_states(weights, base_state, inserted_state)
            return scores + _row_products(unembedding.rows(tokens).to(query), query)
        scores = weights["bias"][tokens] + _row_products(
            weights["base"][tokens], base_state.to(weights["base"])
        )
        if "inserted" in weights and inserted_state is not None:
            scores = scores + _row_products(weights["inserted"][tokens], inserted_state)
        return scores


def _low_rank_query(
    weights: Mapping[str, Tensor], base_state: Tensor, inserted_state: Tensor | None
) -> Tensor:
    """`U A [y ; v]`, [..., d]: what the unembedding's rows are multiplied by."""
    import torch.nn.functional as F

    factor = F.linear(base_state.to(weights["factor_base"].dtype), weights["factor_base"])
    if "factor_inserted" in weights and inserted_state is not None:
        factor = factor + F.linear(inserted_state, weights["factor_inserted"])
    return F.linear(factor, weights["factor_out"])


def _row_products(rows: Tensor, state: Tensor) -> Tensor:
    """Rows [..., k, d] against states [..., d]: [..., k]."""
    return (rows @ state.unsqueeze(-1)).squeeze(-1)


# Of a cell whose width nobody chose, in hidden units of the base.
_DEFAULT_WIDTH_RATIO = 2


class FutureHead(SignalHead):
    """Logits `[..., n, vocab]` of tokens t+2 ... t+n+1 by the base's frozen unembedding.

    With a cell of width w: s_0 = y, and s_k = s_{k-1} + W_o (silu(g) * u) where
    [g ; u] = W [s_{k-1} / rms ; e / rms ; v] + b, e the unembedding's row of token t+k, so that the
    guess of t+k+1 knows all tokens before it: the conditioning of Hydra (arXiv 2402.05109), the
    recurrence of ReDrafter (arXiv 2403.09919).
    Without: a SiLU residual block for each head (Medusa, arXiv 2401.10774, section 2.1).
    """

    kind: ClassVar[str] = "future"
    # The output is zero: a new cell drafts what the base says, again.
    drawn: ClassVar[frozenset[str]] = frozenset({"cell_base", "cell_token", "cell_inserted"})

    def shapes(self, signal: SignalConfig, hidden: int, inserted: int, vocab: int) -> HeadShapes:
        if signal.width == 0:
            return linear_shapes(signal.size * hidden, hidden, inserted)
        width = signal.width or _DEFAULT_WIDTH_RATIO * hidden
        shapes: HeadShapes = {"cell_base": (2 * width, hidden), "cell_token": (2 * width, hidden)}
        if inserted:
            shapes["cell_inserted"] = (2 * width, inserted)
        return shapes | {"cell_bias": (2 * width,), "cell_out": (hidden, width)}

    def work(self, signal: SignalConfig, hidden: int, inserted: int, vocab: int) -> int:
        """Multiply-adds of each draft of a chain: a step of the cell, or one head's block, and a
        product over the vocabulary."""
        matrices = [s for s in self.shapes(signal, hidden, inserted, vocab).values() if len(s) > 1]
        shared = signal.size if signal.width == 0 else 1
        return sum(map(prod, matrices)) // shared + vocab * hidden

    def forward(
        self,
        signal: SignalConfig,
        weights: Mapping[str, Tensor],
        base_state: Tensor,
        inserted_state: Tensor | None,
        unembedding: Unembedding,
    ) -> Tensor:
        """Of a cell: after the base's best next token, and its own best guesses."""
        import torch.nn.functional as F

        if signal.width != 0:
            none = base_state.new_empty((*base_state.shape[:-1], 0)).long()
            return self.after(signal, weights, base_state, inserted_state, unembedding, none)
        block = project_states(weights, base_state, inserted_state).unflatten(-1, (signal.size, -1))
        return unembedding.logits(base_state.unsqueeze(-2).to(block.dtype) + F.silu(block))

    def after(
        self,
        signal: SignalConfig,
        weights: Mapping[str, Tensor],
        base_state: Tensor,
        inserted_state: Tensor | None,
        unembedding: Unembedding,
        tokens: Tensor,
    ) -> Tensor:
        """All n heads where the tokens that follow, t+1 ... t+k, are `tokens` [..., k]: beyond
        them the best guesses are taken. Heads without a cell look at none."""
        import torch

        if signal.width == 0:
            return self.forward(signal, weights, base_state, inserted_state, unembedding)
        states, given = [base_state], tokens.unbind(-1)
        for head in range(signal.size):
            said = given[head] if head < len(given) else unembedding.logits(states[-1]).argmax(-1)
            states.append(self.follow(weights, states[-1], inserted_state, unembedding, said))
        return unembedding.logits(torch.stack(states[1:], -2))

    def follow(
        self,
        weights: Mapping[str, Tensor],
        state: Tensor,
        inserted_state: Tensor | None,
        unembedding: Unembedding,
        token: Tensor,
    ) -> Tensor:
        """The cell's state [..., d] after one more `token` [...]."""
        import torch.nn.functional as F

        state = state.to(weights["cell_base"].dtype)
        row = unembedding.rows(token).to(state)
        inner = F.linear(_rms_norm(state), weights["cell_base"], weights["cell_bias"])
        inner = inner + F.linear(_rms_norm(row), weights["cell_token"])
        if "cell_inserted" in weights and inserted_state is not None:
            inner = inner + F.linear(inserted_state, weights["cell_inserted"])
        gate, up = inner.chunk(2, -1)
        return state + F.linear(F.silu(gate) * up, weights["cell_out"])


def _rms_norm(state: Tensor) -> Tensor:
    import torch.nn.functional as F

    return F.rms_norm(state, state.shape[-1:], eps=1e-6)


class ValueHead(SignalHead):
    """Scores `[..., size]` linear in [y ; v]; one attribute drops the last dimension."""

    kind: ClassVar[str] = "value"

    def shapes(self, signal: SignalConfig, hidden: int, inserted: int, vocab: int) -> HeadShapes:
        return linear_shapes(signal.size, hidden, inserted)

    def forward(
        self,
        signal: SignalConfig,
        weights: Mapping[str, Tensor],
        base_state: Tensor,
        inserted_state: Tensor | None,
        unembedding: Unembedding,
    ) -> Tensor:
        scores = project_states(weights, base_state, inserted_state)
        return scores.squeeze(-1) if signal.size == 1 and self.kind == "value" else scores


class ClassesHead(ValueHead):
    """Multi-label logits `[..., classes]`; probabilities are their sigmoid."""

    kind: ClassVar[str] = "classes"


HEADS: dict[str, SignalHead] = {
    head.kind: head for head in (ValueHead(), ClassesHead(), FutureHead(), VocabularyHead())
}
