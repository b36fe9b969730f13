"""Inserted FFN units: METHOD, 1, row FFN."""

from __future__ import annotations

from torch import Tensor
from transformers.activations import ACT2FN

from otter_cli.families import BaseShape
from otter_cli.insertion.config import InsertionConfig
from otter_cli.model.branch import BranchTap, InsertedBranch, read_of
from otter_cli.model.joint import Joint, OfBase, TwoInputs


class InsertedFeedForward(InsertedBranch):
    """t is the base's activation m; t' is `act(x W_g^h + u W_g^z) * (x W_u^h + u W_u^z)`."""

    def __init__(self, config: InsertionConfig, shape: BaseShape) -> None:
        block, f = shape.family.ffn, config.ffn
        super().__init__(config, shape, block, f)
        d, D = shape.hidden, config.hidden
        wide, bias = read_of(block, shape.ffn, d, shape.ffn_bias)
        self.down = TwoInputs(wide, f, D, bias)
        self._down = self.joint(self.down)
        self._inputs: Joint | None = None
        if f:
            self.gate = None if block.plain else TwoInputs(d, D, f, shape.ffn_bias)
            self.up = TwoInputs(d, D, f, shape.ffn_bias)
            self._inputs = self.joint(*([self.gate] if self.gate else []), self.up)
            self.activation = ACT2FN[shape.activation]

    def forward(self, z: Tensor, entry: Tensor, tap: BranchTap, made: OfBase) -> Tensor:
        """z after the branch; `entry` is z where the branch begins."""
        mine = self.units(entry, tap, made.units) if self.thin else None
        return self.land(self._down, z, tap, mine, made.down)

    def units(self, z: Tensor, tap: BranchTap, made: Tensor | None) -> Tensor:
        """m', [n, f]."""
        assert self._inputs is not None
        inputs = self._inputs(tap.normed, self.normed(z, tap), made)
        if self.gate is None:
            return self.activation(inputs)
        gate, up = inputs.chunk(2, -1)
        return self.activation(gate) * up
