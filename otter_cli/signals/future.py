"""Future tokens: a cell that goes on from a state, token by drafted token, or Medusa's heads, each
of which guesses by itself (METHOD, 3)."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, ClassVar

from otter_cli.signals.config import SignalConfig
from otter_cli.signals.head import Head, Shapes, Unembedding, combine, rows_of

if TYPE_CHECKING:
    from torch import Tensor

# Of a cell whose width nobody chose, in hidden units of the base.
_USUAL_WIDTH = 2


class Future(Head):
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

    def shapes(self, signal: SignalConfig, hidden: int, inserted: int, vocab: int) -> Shapes:
        if signal.width == 0:
            return rows_of(signal.size * hidden, hidden, inserted)
        width = signal.width or _USUAL_WIDTH * hidden
        shapes: Shapes = {"cell_base": (2 * width, hidden), "cell_token": (2 * width, hidden)}
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
        block = combine(weights, base_state, inserted_state).unflatten(-1, (signal.size, -1))
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
        inner = F.linear(_normed(state), weights["cell_base"], weights["cell_bias"])
        inner = inner + F.linear(_normed(row), weights["cell_token"])
        if "cell_inserted" in weights and inserted_state is not None:
            inner = inner + F.linear(inserted_state, weights["cell_inserted"])
        gate, up = inner.chunk(2, -1)
        return state + F.linear(F.silu(gate) * up, weights["cell_out"])


def _normed(state: Tensor) -> Tensor:
    import torch.nn.functional as F

    return F.rms_norm(state, state.shape[-1:], eps=1e-6)
