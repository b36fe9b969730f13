"""The base's output head, read as it is: its own logits, its bare product, and its rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from otter_cli.families import BaseShape


class FrozenHead:
    """`signals.Unembedding` of a loaded base. The head is called, never copied, so that hooks and
    shards of it stay what they are."""

    def __init__(self, base: PreTrainedModel, shape: BaseShape) -> None:
        self.base, self.shape = base, shape

    def logits(self, state: Tensor) -> Tensor:
        shape = self.shape
        logits = self._head(state)
        if shape.logit_scale != 1.0:
            logits = logits * shape.logit_scale
        if shape.logit_divisor != 1.0:
            logits = logits / shape.logit_divisor
        if shape.logit_cap is not None:
            logits = torch.tanh(logits / shape.logit_cap) * shape.logit_cap
        return logits

    def product(self, state: Tensor) -> Tensor:
        bias = getattr(self._module, "bias", None)
        product = self._head(state)
        return product if bias is None else product - bias

    def rows(self, tokens: Tensor) -> Tensor:
        return torch.nn.functional.embedding(tokens, self._module.weight)

    @property
    def _module(self) -> Any:
        return self.base.get_submodule(self.shape.family.head)

    def _head(self, state: Tensor) -> Tensor:
        head = self._module
        out: Tensor = head(state.to(head.weight.dtype))
        return out
