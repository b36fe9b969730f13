"""Inserted FFN units: METHOD, 1, row FFN."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from transformers.activations import ACT2FN

from otter_cli.families import BaseShape
from otter_cli.insertion.config import InsertionConfig
from otter_cli.model.branch import BranchTap, InsertedBranch, TwoInputs, read_of


class InsertedFeedForward(InsertedBranch):
    """t is the base's activation m; t' is `act(x W_g^h + u W_g^z) * (x W_u^h + u W_u^z)`."""

    def __init__(self, config: InsertionConfig, shape: BaseShape) -> None:
        block, f = shape.family.ffn, config.ffn
        super().__init__(config, shape, block, f)
        d, D = shape.hidden, config.hidden
        wide, bias = read_of(block, shape.ffn, d, shape.ffn_bias)
        self.down = TwoInputs(wide, f, D, bias)
        if f:
            self.gate = None if block.plain else TwoInputs(d, D, f, shape.ffn_bias)
            self.up = TwoInputs(d, D, f, shape.ffn_bias)
            self.activation: nn.Module = ACT2FN[shape.activation]

    def forward(self, name: str, z: Tensor, tap: BranchTap) -> Tensor:
        return self.land(self.down, name, z, tap)

    def inserted(self, name: str, tap: BranchTap) -> Tensor:
        """[batch, tokens, f]."""
        u = self.norm(tap.entry[name], tap.residual)
        up: Tensor = self.up(tap.normed, u)
        if self.gate is None:
            return cast(Tensor, self.activation(up))
        return cast(Tensor, self.activation(self.gate(tap.normed, u)) * up)
