"""One insertion: token embedding, layers, final norm and signal heads.

The state dict of `Insertion` has the tensor names of otter.safetensors. BatchedBaseProjections
computes, for all layers at once, what their products take from the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from otter_cli.core.errors import OtterError
from otter_cli.families.shape import BaseShape
from otter_cli.graft.config import InsertionConfig
from otter_cli.model.activations import AttentionActivations, BranchActivations
from otter_cli.model.fused_linear import BaseProjections, BatchedLinear
from otter_cli.model.stream import InsertedLayer, StreamNorm
from otter_cli.signals.config import SignalConfig
from otter_cli.signals.heads import HEADS, FutureHead, HeadInputs, Unembedding, VocabularyHead


class BatchedBaseProjections:
    """The products of an insertion that read the base, in four for all of its layers: a CPU spreads
    a batched product over its threads, and runs a row times one matrix on one."""

    def __init__(self, layers: Sequence[InsertedLayer]) -> None:
        self.layers = layers
        self.products = [
            BatchedLinear([joint for joint in joints if joint is not None])
            for joints in zip(*(layer.joints for layer in layers), strict=True)
        ]

    def __call__(
        self, taps: Sequence[tuple[AttentionActivations, BranchActivations]]
    ) -> Sequence[BaseProjections]:
        """By layer; empty ones where layers are missing, lie on several devices, or have hooks to
        be called before they are read."""
        devices = {attention.normed.device for attention, _ in taps}
        hooked = any(layer._forward_pre_hooks for layer in self.layers)
        if len(taps) < len(self.layers) or len(devices) > 1 or hooked:
            return [BaseProjections()] * len(taps)
        heads, out, units, down = self.products
        made = (
            heads([attention.normed for attention, _ in taps]),
            out([attention.part for attention, _ in taps]),
            units([ffn.normed for _, ffn in taps]),
            down([ffn.part for _, ffn in taps]),
        )
        return [BaseProjections(*each) for each in zip(*made, strict=True)]


class NamedModules(nn.Module):
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
        learned = table and shape.position_rows
        self.positions = nn.Embedding(shape.position_rows, config.hidden) if learned else None
        if config.hidden:
            self.layers = nn.ModuleDict(
                {str(i): InsertedLayer(config, shape) for i in config.layers}
            )
            self.norm = StreamNorm(config, shape)
            inserted = [self.layers[str(i)] for i in sorted(config.layers)]
            self.layered = BatchedBaseProjections(cast(list[InsertedLayer], inserted))
        self._configs = {signal.name: signal for signal in config.signals}
        self.signals = NamedModules(
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
        inputs = HeadInputs(signal, weights, base_state, inserted_state, unembedding)
        head = HEADS[signal.kind]
        if tokens is None:
            return head.forward(inputs)
        if isinstance(head, VocabularyHead):
            return head.score_tokens(inputs, tokens)
        if isinstance(head, FutureHead):
            return head.continue_from(inputs, tokens)
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
        if not isinstance(head, FutureHead) or signal.width == 0:
            raise OtterError(
                f"signal {name!r} has no cell that could go on",
                hint="future:N has one; future:N,plain and other kinds are read at once",
            )
        return head.step(HeadInputs(signal, weights, state, inserted_state, unembedding), tokens)

    def _signal(self, name: str) -> tuple[SignalConfig, Mapping[str, Tensor]]:
        # Not by the module's own look-up, which takes longer than the head's products.
        weights = cast(dict[str, nn.Parameter], self.signals[name]._parameters)
        return self._configs[name], weights
