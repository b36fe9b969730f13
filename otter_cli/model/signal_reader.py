"""The signal heads of one insertion, and how they read [y ; v]: docs/method.md, "Signals"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from otter_cli.core.errors import OtterError
from otter_cli.families.shape import BaseShape
from otter_cli.graft.config import InsertionConfig
from otter_cli.signals.config import SignalConfig
from otter_cli.signals.heads import HEADS, FutureHead, HeadInputs, Unembedding, VocabularyHead


class SignalReader(nn.Module):
    """The tensors of all heads, as `{signal}.{tensor}`, and their formulas. Modules are stored
    directly: ModuleDict refuses names of torch's own attributes, such as `values` or `type`."""

    def __init__(self, config: InsertionConfig, shape: BaseShape) -> None:
        super().__init__()
        self._configs = {signal.name: signal for signal in config.signals}
        for name, signal in self._configs.items():
            shapes = HEADS[signal.kind].shapes(signal, shape.hidden, config.hidden, shape.vocab)
            self._modules[name] = nn.ParameterDict(
                {tensor: nn.Parameter(torch.empty(size)) for tensor, size in shapes.items()}
            )

    def read(
        self,
        name: str,
        base_state: Tensor,
        inserted_state: Tensor | None,
        unembedding: Unembedding,
        tokens: Tensor | None = None,
    ) -> Tensor:
        """The signal `name` at the positions of the given states. With `tokens`: action values of
        these alone, or future tokens where these follow. Raises OtterError for other kinds."""
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
        """The state [..., d] of a future signal's cell after one more of the `tokens` [...].
        Raises OtterError for signals without a cell."""
        signal, weights = self._signal(name)
        head = HEADS[signal.kind]
        if not isinstance(head, FutureHead) or signal.width == 0:
            raise OtterError(
                f"signal {name!r} has no cell that could go on",
                hint="future:N has one; future:N,plain and other kinds are read at once",
            )
        return head.step(HeadInputs(signal, weights, state, inserted_state, unembedding), tokens)

    def __getitem__(self, name: str) -> nn.ParameterDict:
        return cast(nn.ParameterDict, self._modules[name])

    def _signal(self, name: str) -> tuple[SignalConfig, Mapping[str, Tensor]]:
        # ParameterDict's own look-up takes longer than the products of a head.
        return self._configs[name], cast(dict[str, nn.Parameter], self[name]._parameters)
