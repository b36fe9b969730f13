"""Numbers as native code is given them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def table(numbers: Sequence[int]) -> Any:
    return (ctypes.c_int64 * len(numbers))(*numbers)


class Memory:
    """Addresses of numbers in single precision, one after the other, that live as long as it."""

    def __init__(self) -> None:
        self.held: list[Tensor] = []

    def at(self, tensor: Tensor | None) -> int:
        assert tensor is not None
        if tensor.dtype != torch.float32 or not tensor.is_contiguous():
            tensor = tensor.float().contiguous()
        self.held.append(tensor)
        return tensor.data_ptr()
