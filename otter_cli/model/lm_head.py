"""The frozen output head of the base.

FrozenHead gives logits, the bare product and rows of the (un)embedding, without a copy of it.
`keep_stock_kernel` makes a frozen head use the kernel that it uses in a stock model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from otter_cli.families.shape import BaseShape


def keep_stock_kernel(head: nn.Module) -> None:
    """While gradients are off, the head's weight demands them for as long as the head runs."""
    weight = getattr(head, "weight", None)
    if not isinstance(weight, nn.Parameter) or not weight.is_floating_point():
        return

    def enter(*_: Any) -> None:
        weight.requires_grad_(not torch.is_grad_enabled())

    def leave(*_: Any) -> None:
        weight.requires_grad_(False)

    head.register_forward_pre_hook(enter)
    head.register_forward_hook(leave, always_call=True)


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
