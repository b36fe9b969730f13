"""The inserted stream z of one insertion: METHOD, 1. It reads the base and is read by nothing in
it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from otter_cli.core.errors import OtterError
from otter_cli.families import BaseShape
from otter_cli.insertion.config import InsertionConfig
from otter_cli.model.attention import InsertedAttention, Remember
from otter_cli.model.branch import AttentionTap, BranchTap
from otter_cli.model.chosen import Chosen
from otter_cli.model.feed_forward import InsertedFeedForward
from otter_cli.model.joint import Joint, OfBase, rows
from otter_cli.model.layered import Layered
from otter_cli.model.norms import StreamNorm
from otter_cli.model.rotary import Rotate
from otter_cli.signals import HEADS, Future, SignalConfig, Unembedding, Vocabulary


class InsertedLayer(nn.Module):
    """What one decoder layer of the base gets."""

    def __init__(self, config: InsertionConfig, shape: BaseShape) -> None:
        super().__init__()
        self.attention = InsertedAttention(config, shape)
        self.ffn = InsertedFeedForward(config, shape)
        self.parallel = shape.parallel

    @property
    def joints(self) -> tuple[Joint | None, ...]:
        """As `OfBase` has them."""
        a, m = self.attention, self.ffn
        return a._inputs, a._out, m._inputs, m._down

    def forward(
        self,
        z: Tensor,
        attention: AttentionTap,
        ffn: BranchTap,
        rotate: Rotate,
        remember: Remember,
        made: OfBase,
        chosen: Chosen | None = None,
    ) -> Tensor:
        """z after the layer, [batch, tokens, D], or [N, D] at the positions that are read after the
        last. `made`: what all layers made at once."""
        entry = rows(z)
        middle = self.attention(entry, attention, rotate, remember, made, chosen)
        if chosen is not None:
            entry, ffn = chosen.of(entry), ffn.at(chosen)
        after: Tensor = self.ffn(middle, entry if self.parallel else middle, ffn, made)
        return after.view(z.shape) if chosen is None else after


class Named(nn.Module):
    """A ModuleDict whose names may be those of torch's own attributes: `values`, `type`."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._modules.update(modules)

    def __getitem__(self, name: str) -> nn.Module:
        module = self._modules[name]
        assert module is not None
        return module


class Insertion(nn.Module):
    """One insertion: embedding, layers, final norm and signal heads. Its state dict has the names
    of the file."""

    def __init__(self, config: InsertionConfig, shape: BaseShape) -> None:
        super().__init__()
        self.config = config
        table = config.hidden > 0 and config.embedding == "table"
        self.embedding = nn.Embedding(shape.vocab, config.hidden) if table else None
        learned = table and shape.positions
        self.positions = nn.Embedding(shape.positions, config.hidden) if learned else None
        if config.hidden:
            self.layers = nn.ModuleDict(
                {str(i): InsertedLayer(config, shape) for i in config.layers}
            )
            self.norm = StreamNorm(config, shape)
            inserted = [self.layers[str(i)] for i in sorted(config.layers)]
            self.layered = Layered(cast(list[InsertedLayer], inserted))
        self._configs = {signal.name: signal for signal in config.signals}
        self.signals = Named(
            {
                signal.name: nn.ParameterDict(
                    {
                        name: nn.Parameter(torch.empty(form))
                        for name, form in HEADS[signal.kind]
                        .shapes(signal, shape.hidden, config.hidden, shape.vocab)
                        .items()
                    }
                )
                for signal in config.signals
            }
        )

    def start(self, tokens: Tensor) -> Tensor:
        """`z = E_z[t]`, or zeros. [batch, tokens, D]."""
        if self.embedding is not None:
            first: Tensor = self.embedding(tokens)
            return first
        weight = self.norm.weight
        return torch.zeros(
            *tokens.shape, self.config.hidden, dtype=weight.dtype, device=weight.device
        )

    def read(
        self,
        name: str,
        base_state: Tensor,
        inserted_state: Tensor | None,
        unembedding: Unembedding,
        tokens: Tensor | None = None,
    ) -> Tensor:
        """The signal `name` at the positions of the given states; of action values, those of
        `tokens` alone where given, and of future tokens, where `tokens` are what follows."""
        signal, weights = self._signal(name)
        head, states = HEADS[signal.kind], (base_state, inserted_state)
        if tokens is None:
            return head.forward(signal, weights, *states, unembedding)
        if isinstance(head, Vocabulary):
            return head.of_tokens(signal, weights, *states, unembedding, tokens)
        if isinstance(head, Future):
            return head.after(signal, weights, *states, unembedding, tokens)
        raise OtterError(
            f"signal {name!r} is of kind {signal.kind}: it reads no tokens",
            hint="read it without tokens; action values are of kind vocabulary",
        )

    def follow(
        self,
        name: str,
        state: Tensor,
        inserted_state: Tensor | None,
        unembedding: Unembedding,
        tokens: Tensor,
    ) -> Tensor:
        """The state [..., d] of a future signal's cell after one more of the `tokens` [...]."""
        signal, weights = self._signal(name)
        head = HEADS[signal.kind]
        if not isinstance(head, Future) or signal.width == 0:
            raise OtterError(
                f"signal {name!r} has no cell that could go on",
                hint="future:N has one; future:N,plain and other kinds are read at once",
            )
        return head.follow(weights, state, inserted_state, unembedding, tokens)

    def _signal(self, name: str) -> tuple[SignalConfig, Mapping[str, Tensor]]:
        # Not by the module's own look-up, which takes longer than the head's products.
        weights = cast(dict[str, nn.Parameter], self.signals[name]._parameters)
        return self._configs[name], weights
