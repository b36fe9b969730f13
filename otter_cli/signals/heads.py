"""The heads: one class for each signal kind, and their registry.

A head reads [y ; v]: y is the final normed state of the base, v that of the stream. The product
over the concatenation is computed as two products, so y and v stay two tensors (docs/method.md,
"Signals"). Shapes are computed without torch. A new kind is one class here and its name in
`config.SIGNAL_KINDS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

from otter_cli.signals.config import SignalConfig

if TYPE_CHECKING:
    from torch import Tensor


HeadShapes = dict[str, tuple[int, ...]]

# The default width of a future signal's cell, as a multiple of the base's hidden size.
_DEFAULT_WIDTH_RATIO = 2


class Unembedding(Protocol):
    """The base's frozen output matrix, with one row e(token) for each token of the vocabulary."""

    def logits(self, state: Tensor) -> Tensor:
        """The base's logits [..., vocab] of states [..., d], with its scales and its cap."""

    def product(self, state: Tensor) -> Tensor:
        """`<state, e(token)>` for every token, [..., vocab]."""

    def rows(self, tokens: Tensor) -> Tensor:
        """e(token), [..., d]."""


class HeadInputs(NamedTuple):
    """What a head reads: its tensors by name, y [..., d], v [..., D] and the unembedding."""

    signal: SignalConfig
    weights: Mapping[str, Tensor]
    base_state: Tensor
    inserted_state: Tensor | None
    unembedding: Unembedding

    def product(self, prefix: str = "", bias: Tensor | None = None) -> Tensor:
        """`[y ; v] W + bias`, where W is stored as `{prefix}base` and `{prefix}inserted`."""
        import torch.nn.functional as F

        weight = self.weights[f"{prefix}base"]
        out = F.linear(self.base_state.to(weight.dtype), weight, bias)
        inserted = f"{prefix}inserted"
        if inserted in self.weights and self.inserted_state is not None:
            out = out + F.linear(self.inserted_state.to(weight.dtype), self.weights[inserted])
        return out


class SignalHead(ABC):
    """One kind of signal. An untrained signal reads zero, because its output tensors are zero.
    `random_tensors` names the others, which start at random values so that gradients pass."""

    kind: ClassVar[str]
    random_tensors: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def shapes(self, signal: SignalConfig, hidden: int, inserted: int, vocab: int) -> HeadShapes:
        """The head's tensors, for a base with d = `hidden` and a stream with D = `inserted`."""

    @abstractmethod
    def forward(self, inputs: HeadInputs) -> Tensor:
        """The signal at every position of the states."""


def linear_shapes(rows: int, hidden: int, inserted: int) -> HeadShapes:
    """The tensors of `[y ; v] W + b` with `rows` outputs."""
    shapes: HeadShapes = {"base": (rows, hidden), "bias": (rows,)}
    return shapes | ({"inserted": (rows, inserted)} if inserted else {})


class ClassesHead(SignalHead):
    """Multi-label logits `[..., classes]`, linear in [y ; v]. Their sigmoid is the probability."""

    kind: ClassVar[str] = "classes"

    def shapes(self, signal: SignalConfig, hidden: int, inserted: int, vocab: int) -> HeadShapes:
        return linear_shapes(signal.size, hidden, inserted)

    def forward(self, inputs: HeadInputs) -> Tensor:
        return inputs.product(bias=inputs.weights["bias"])


class ValueHead(ClassesHead):
    """Scores `[..., size]`, linear in [y ; v]. A single attribute drops the last dimension."""

    kind: ClassVar[str] = "value"

    def forward(self, inputs: HeadInputs) -> Tensor:
        scores = super().forward(inputs)
        return scores.squeeze(-1) if inputs.signal.size == 1 else scores


@dataclass(frozen=True)
class ActionValueCost:
    """Multiply-adds of action values at one position: `shared` once, `each` for every token."""

    shared: int
    each: int


class VocabularyHead(SignalHead):
    """Action values `[..., vocab]`, one for each possible next token.

    Low-rank (the default): `<s, w> + b + <U A s, e(token)>`, where s = [y ; v], U A has rank `size`
    and e(token) is the frozen unembedding's row. Full (`size` 0): `<s, w_token> + b_token`.
    """

    kind: ClassVar[str] = "vocabulary"
    # U is zero. As in LoRA, the other factor must not be, or neither would get a gradient.
    random_tensors: ClassVar[frozenset[str]] = frozenset({"factor_base", "factor_inserted"})

    def shapes(self, signal: SignalConfig, hidden: int, inserted: int, vocab: int) -> HeadShapes:
        if not signal.size:
            return linear_shapes(vocab, hidden, inserted)
        rank = min(signal.size, hidden)
        shapes = linear_shapes(1, hidden, inserted)
        shapes |= {"factor_base": (rank, hidden), "factor_out": (hidden, rank)}
        return shapes | ({"factor_inserted": (rank, inserted)} if inserted else {})

    def cost(self, signal: SignalConfig, hidden: int, inserted: int) -> ActionValueCost:
        state = hidden + inserted
        if not signal.size:
            return ActionValueCost(shared=0, each=state)
        rank = min(signal.size, hidden)
        return ActionValueCost(shared=state + rank * (state + hidden), each=hidden)

    def forward(self, inputs: HeadInputs) -> Tensor:
        scores = inputs.product(bias=inputs.weights["bias"])
        if not inputs.signal.size:
            return scores
        # `<s, w> + b` is the same for every token: [..., 1] broadcasts.
        return scores + inputs.unembedding.product(self._query(inputs)).to(scores)

    def score_tokens(self, inputs: HeadInputs, tokens: Tensor) -> Tensor:
        """The scores [..., k] of the tokens with ids [..., k] alone."""
        weights = inputs.weights
        if inputs.signal.size:
            query = self._query(inputs)
            scores = inputs.product(bias=weights["bias"])
            return scores + _row_products(inputs.unembedding.rows(tokens).to(query), query)
        base = weights["base"]
        scores = weights["bias"][tokens] + _row_products(base[tokens], inputs.base_state.to(base))
        if "inserted" in weights and inputs.inserted_state is not None:
            scores = scores + _row_products(weights["inserted"][tokens], inputs.inserted_state)
        return scores

    def _query(self, inputs: HeadInputs) -> Tensor:
        """`U A [y ; v]`, [..., d], which is multiplied by the unembedding's rows."""
        import torch.nn.functional as F

        return F.linear(inputs.product("factor_"), inputs.weights["factor_out"])


def _row_products(rows: Tensor, state: Tensor) -> Tensor:
    """Products [..., k] of rows [..., k, d] and states [..., d]."""
    return (rows @ state.unsqueeze(-1)).squeeze(-1)


class FutureHead(SignalHead):
    """Logits `[..., n, vocab]` of tokens t+2 ... t+n+1, by the base's frozen unembedding.

    With a cell of width w: s_0 = y, and s_k = s_{k-1} + W_o (silu(g) * u), where
    [g ; u] = W [s_{k-1} / rms ; e / rms ; v] + b and e is the unembedding's row of token t+k. The
    guess of t+k+1 depends on all tokens before it: the conditioning of Hydra (arXiv 2402.05109) in
    the recurrence of ReDrafter (arXiv 2403.09919).
    Without a cell (`width` 0): one SiLU residual block for each head, as in Medusa
    (arXiv 2401.10774, section 2.1).
    """

    kind: ClassVar[str] = "future"
    # The cell's output is zero: an untrained cell drafts the base's next token again.
    random_tensors: ClassVar[frozenset[str]] = frozenset(
        {"cell_base", "cell_token", "cell_inserted"}
    )

    def shapes(self, signal: SignalConfig, hidden: int, inserted: int, vocab: int) -> HeadShapes:
        if signal.width == 0:
            return linear_shapes(signal.size * hidden, hidden, inserted)
        width = signal.width or _DEFAULT_WIDTH_RATIO * hidden
        shapes: HeadShapes = {"cell_base": (2 * width, hidden), "cell_token": (2 * width, hidden)}
        if inserted:
            shapes["cell_inserted"] = (2 * width, inserted)
        return shapes | {"cell_bias": (2 * width,), "cell_out": (hidden, width)}

    def draft_cost(self, signal: SignalConfig, hidden: int, inserted: int, vocab: int) -> int:
        """Multiply-adds of one draft: a step of the cell, or one head's block, and a product over
        the vocabulary."""
        matrices = [s for s in self.shapes(signal, hidden, inserted, vocab).values() if len(s) > 1]
        heads = signal.size if signal.width == 0 else 1
        return sum(map(prod, matrices)) // heads + vocab * hidden

    def forward(self, inputs: HeadInputs) -> Tensor:
        """All n heads. A cell reads the base's best next token, then its own best guesses."""
        import torch.nn.functional as F

        state = inputs.base_state
        if inputs.signal.width != 0:
            return self.continue_from(inputs, state.new_empty((*state.shape[:-1], 0)).long())
        block = inputs.product(bias=inputs.weights["bias"])
        block = block.unflatten(-1, (inputs.signal.size, -1))
        return inputs.unembedding.logits(state.unsqueeze(-2).to(block.dtype) + F.silu(block))

    def continue_from(self, inputs: HeadInputs, tokens: Tensor) -> Tensor:
        """All n heads after the next tokens t+1 ... t+k, which are `tokens` [..., k]. Later tokens
        are the cell's best guesses. Heads without a cell read no tokens."""
        import torch

        if inputs.signal.width == 0:
            return self.forward(inputs)
        states, logits, next_tokens = (
            [inputs.base_state],
            inputs.unembedding.logits,
            tokens.unbind(-1),
        )
        for head in range(inputs.signal.size):
            known = head < len(next_tokens)
            token = next_tokens[head] if known else logits(states[-1]).argmax(-1)
            states.append(self.step(inputs._replace(base_state=states[-1]), token))
        return logits(torch.stack(states[1:], -2))

    def step(self, inputs: HeadInputs, tokens: Tensor) -> Tensor:
        """The cell's state [..., d] after `tokens` [...]; `inputs.base_state` is the one before."""
        import torch.nn.functional as F

        weights = inputs.weights
        state = inputs.base_state.to(weights["cell_base"].dtype)
        row = inputs.unembedding.rows(tokens).to(state)
        inner = F.linear(_rms_norm(state), weights["cell_base"], weights["cell_bias"])
        inner = inner + F.linear(_rms_norm(row), weights["cell_token"])
        if "cell_inserted" in weights and inputs.inserted_state is not None:
            inner = inner + F.linear(inputs.inserted_state, weights["cell_inserted"])
        gate, up = inner.chunk(2, -1)
        return state + F.linear(F.silu(gate) * up, weights["cell_out"])


def _rms_norm(state: Tensor) -> Tensor:
    import torch.nn.functional as F

    return F.rms_norm(state, state.shape[-1:], eps=1e-6)


HEADS: dict[str, SignalHead] = {
    head.kind: head for head in (ValueHead(), ClassesHead(), FutureHead(), VocabularyHead())
}
