"""Numbers as native code is given them."""

from __future__ import annotations

import ctypes
from array import array

import torch
from torch import Tensor


def at(numbers: array[int], first: int = 0) -> ctypes.c_void_p:
    """Where native code finds them, as long as the array lives and is not added to."""
    return ctypes.c_void_p(numbers.buffer_info()[0] + first * numbers.itemsize)


class Memory:
    """Addresses of numbers one after the other, in single precision unless told otherwise: of a
    tensor, or of what it was converted to, which lives as long as this."""

    def __init__(self) -> None:
        self.held: list[Tensor] = []

    def at(self, tensor: Tensor | None, dtype: torch.dtype = torch.float32) -> int:
        assert tensor is not None
        if tensor.dtype is not dtype or not tensor.is_contiguous():
            tensor = tensor.to(dtype).contiguous()
            self.held.append(tensor)
        return tensor.data_ptr()

    def kept(self, tensor: Tensor | None, dtype: torch.dtype = torch.float32) -> int:
        """The address of a copy that lives as long as this; 0 of None."""
        if tensor is None:
            return 0
        self.held.append(tensor.detach().to(dtype, copy=True).contiguous())
        return self.held[-1].data_ptr()
