"""The frozen output head of the base.

FrozenHead gives logits, the bare product and rows of the (un)embedding, without a copy of it.
StockKernelForward makes a frozen head use the kernel that it uses in a stock model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from otter_cli.families.shape import BaseShape


class StockKernelForward:
    """A wrapped forward of the output head (see capture.py). Some CPU kernels are chosen by whether
    the weight requires a gradient, and round differently. So while gradients are off, the frozen
    weight requires one for as long as the head runs."""

    def __init__(self, head: nn.Module) -> None:
        self.forward = head.forward
        self.weight: Any = getattr(head, "weight", None)
        if isinstance(self.weight, nn.Parameter) and self.weight.is_floating_point():
            head.__dict__["forward"] = self

    def __call__(self, *inputs: Any, **kwargs: Any) -> Any:
        self.weight.requires_grad_(not torch.is_grad_enabled())
        try:
            return self.forward(*inputs, **kwargs)
        finally:
            self.weight.requires_grad_(False)


class FrozenHead:
    """`signals.Unembedding` of a loaded base. The head is called, never copied, so its hooks and
    shards stay in place."""

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
