"""The output head of a frozen base takes the kernel that it takes in a stock model.

torch folds the batch of a sliced input (the last position of each row, as `generate` asks for)
into one product only where the weight demands gradients, even while gradients are off: see
`should_fold` in ATen's LinearAlgebra.cpp. Frozen, the same numbers would be summed otherwise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def keep_stock_product(head: nn.Module) -> None:
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
