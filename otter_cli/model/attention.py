"""Inserted heads: METHOD, 1, rows q, k, v, attention and out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from otter_cli.core.errors import OtterError
from otter_cli.families import BaseShape
from otter_cli.insertion.config import InsertionConfig
from otter_cli.model.branch import AttentionCall, AttentionTap, InsertedBranch, read_of
from otter_cli.model.chosen import Chosen
from otter_cli.model.joint import Joint, OfBase, TwoInputs, rows
from otter_cli.model.norms import head_norm
from otter_cli.model.rotary import Rotate

# Stores keys and values in the insertion's own cache layer and gives back all of them.
Remember = Callable[[Cache, Tensor, Tensor], tuple[Tensor, Tensor]]


class InsertedAttention(InsertedBranch):
    """t is the base heads' output a; t' that of heads with their own keys and values, or the
    base's."""

    def __init__(self, config: InsertionConfig, shape: BaseShape) -> None:
        block, c = shape.family.attention, shape.head_dim
        super().__init__(config, shape, block, config.heads)
        d, D, own = shape.hidden, config.hidden, config.kv == "own"
        self.config, self.head_dim = config, c
        wide, bias = read_of(block, shape.heads * c, d, shape.out_bias)
        self.out = TwoInputs(wide, config.heads * c, D, bias)
        self._out = self.joint(self.out)
        self._inputs: Joint | None = None
        if not config.heads:
            return
        self.query = TwoInputs(d, D, config.heads * c, shape.attention_bias)
        self.query_norm = head_norm(block.query_norm, config.heads, shape)
        self.sinks = nn.Parameter(torch.empty(config.heads)) if block.sinks else None
        if own:
            self.key = TwoInputs(d, D, config.kv_heads * c, shape.attention_bias)
            self.value = TwoInputs(d, D, config.kv_heads * c, shape.attention_bias)
        self.key_norm = head_norm(block.key_norm, config.kv_heads, shape) if own else None
        self._inputs = self.joint(self.query, *((self.key, self.value) if own else ()))
        self._parts = [config.heads, *([config.kv_heads] * 2 if own else [])]
        self._turned = [config.heads + config.kv_heads, config.kv_heads]  # queries, keys; values

    def forward(
        self,
        z: Tensor,
        tap: AttentionTap,
        rotate: Rotate,
        remember: Remember,
        made: OfBase,
        chosen: Chosen | None,
    ) -> Tensor:
        """z after the branch, whose heads see all positions."""
        mine = self.heads(z, tap, rotate, remember, made.heads) if self.thin else None
        if chosen is None:
            return self.land(self._out, z, tap, mine, made.out)
        mine = None if mine is None else chosen.of(mine)
        return self.land(self._out, chosen.of(z), tap.at(chosen), mine, made.out)

    def heads(
        self,
        z: Tensor,
        tap: AttentionTap,
        rotate: Rotate,
        remember: Remember,
        made: Tensor | None,
    ) -> Tensor:
        """a', [n, A * c]."""
        if tap.call is None:
            raise OtterError(
                "the base's attention runs through no registered attention function",
                hint='load it with attn_implementation="sdpa"',
            )
        assert self._inputs is not None
        inputs = self._inputs(tap.normed, self.normed(z, tap), made)
        query, key, value = self._split(inputs, tap, rotate)
        if key is None or value is None:  # kv: base
            read = slice(self.config.kv_start, self.config.kv_start + self.config.kv_heads)
            key, value = tap.call.key[:, read], tap.call.value[:, read]
            key, value = key.to(query.dtype), value.to(query.dtype)
        elif (cache := tap.cache) is not None:
            key, value = remember(cache, key, value)
        return rows(self._attend(tap.call, query, key, value).flatten(-2))

    def _split(
        self, inputs: Tensor, tap: AttentionTap, rotate: Rotate
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """q, k and v, [batch, heads, tokens, c]; keys turn with the queries."""
        if self.query_norm is not None:
            flat = inputs.split([heads * self.head_dim for heads in self._parts], -1)
            parts = [self.query_norm(flat[0])]
            if self.key_norm is not None:
                parts += [self.key_norm(flat[1]), flat[2]]
            inputs = torch.cat(parts, -1)
        heads = inputs.view(*tap.normed.shape[:2], -1, self.head_dim)
        if self.config.kv == "base":
            return rotate(heads).transpose(1, 2), None, None
        turning, value = heads.split_with_sizes(self._turned, 2)
        query, key = rotate(turning).transpose(1, 2).split_with_sizes(self._parts[:2], 1)
        return query, key, value.transpose(1, 2)

    def _attend(self, call: AttentionCall, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The base's own call with other heads: [batch, tokens, A, c]."""
        mask = call.mask
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
        attended: Tensor = call.function(module, query, key, value, mask, **arguments)[0]
        return attended


class Grouped:
    """The base's attention module as an attention function sees it, with the insertion's own head
    grouping and sinks."""

    def __init__(self, module: nn.Module, groups: int, sinks: Tensor | None) -> None:
        self._module, self.num_key_value_groups = module, groups
        if sinks is not None:
            self.sinks = sinks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)
