"""Inserted heads: METHOD, 1, rows q, k, v, attention and out."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from otter_cli.core.errors import OtterError
from otter_cli.families import BaseShape
from otter_cli.insertion.config import InsertionConfig
from otter_cli.model.branch import BranchTap, InsertedBranch, TwoInputs, read_of
from otter_cli.model.norms import head_norm


class InsertedAttention(InsertedBranch):
    """t is the base heads' output a; t' that of heads with their own keys and values, or the
    base's."""

    def __init__(self, config: InsertionConfig, shape: BaseShape) -> None:
        block, c = shape.family.attention, shape.head_dim
        super().__init__(config, shape, block, config.heads)
        d, D = shape.hidden, config.hidden
        self.config, self.head_dim = config, c
        wide, bias = read_of(block, shape.heads * c, d, shape.out_bias)
        self.out = TwoInputs(wide, config.heads * c, D, bias)
        if not config.heads:
            return
        self.query = TwoInputs(d, D, config.heads * c, shape.attention_bias)
        self.query_norm = head_norm(block.query_norm, config.heads, shape)
        self.sinks = nn.Parameter(torch.empty(config.heads)) if block.sinks else None
        if config.kv == "own":
            self.key = TwoInputs(d, D, config.kv_heads * c, shape.attention_bias)
            self.value = TwoInputs(d, D, config.kv_heads * c, shape.attention_bias)
            self.key_norm = head_norm(block.key_norm, config.kv_heads, shape)

    def forward(self, name: str, z: Tensor, tap: BranchTap) -> Tensor:
        return self.land(self.out, name, z, tap)

    def inserted(self, name: str, tap: BranchTap) -> Tensor:
        """[batch, tokens, A * c]."""
        if tap.call is None:
            raise OtterError(
                "the base's attention runs through no registered attention function",
                hint='load it with attn_implementation="sdpa"',
            )
        u = self.norm(tap.entry[name], tap.residual)
        query = tap.rotate(self._split(self.query_norm(self.query(tap.normed, u))))
        key, value = self._keys_and_values(tap, u, query.dtype)
        call, mask = tap.call, tap.call.mask
        if mask is not None and mask.is_floating_point():
            mask = mask.to(query.dtype)
        groups = self.config.heads // self.config.kv_heads
        if hasattr(call.module, "num_key_value_groups"):
            module = cast(nn.Module, Grouped(call.module, groups, self.sinks))
        else:  # its attention function expects a key for every query
            module = call.module
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        sinks = {} if self.sinks is None else {"s_aux": self.sinks}
        # No dropout, even where the base trains: its next random numbers would be others.
        arguments = {**call.arguments, "dropout": 0.0, **sinks}
        heads, _ = call.function(module, query, key, value, mask, **arguments)
        return heads.flatten(-2)

    def _keys_and_values(
        self, tap: BranchTap, u: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        assert tap.call is not None
        if self.config.kv == "base":
            read = slice(self.config.kv_start, self.config.kv_start + self.config.kv_heads)
            return tap.call.key[:, read].to(dtype), tap.call.value[:, read].to(dtype)
        assert tap.remember is not None
        key = tap.rotate(self._split(self.key_norm(self.key(tap.normed, u))))
        return tap.remember(self.config.name, key, self._split(self.value(tap.normed, u)))

    def _split(self, flat: Tensor) -> Tensor:
        return flat.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [batch, heads, tokens, c]


class Grouped:
    """The base's attention module as an attention function sees it, with the insertion's own head
    grouping and sinks."""

    def __init__(self, module: nn.Module, groups: int, sinks: Tensor | None) -> None:
        self._module, self.num_key_value_groups = module, groups
        if sinks is not None:
            self.sinks = sinks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)
