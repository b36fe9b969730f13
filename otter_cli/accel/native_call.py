"""Calling the native library: addresses of tensors, and the call itself."""

from __future__ import annotations

import ctypes
from array import array

import torch
from torch import Tensor

from otter_cli.accel.native_abi import NATIVE_DTYPES, StreamCall
from otter_cli.accel.native_library import load_native

# By dtype, its number in stream.cpp.
DTYPE_NUMBERS = {getattr(torch, name): number for number, name in enumerate(NATIVE_DTYPES)}


def run_native(
    call: StreamCall, weights: int, inputs: array[int], z: Tensor, v: Tensor | None
) -> None:
    """Runs the layers of `call`: z [batch, tokens, D] in place, and v after the last of all.
    `weights`: the address of their LayerWeights. `inputs`: their LayerInputs."""
    native = load_native()
    assert native is not None
    native.otter_stream(
        ctypes.byref(call),
        ctypes.c_void_p(weights),
        array_address(inputs),
        ctypes.c_void_p(z.data_ptr()),
        None if v is None else ctypes.c_void_p(v.data_ptr()),
    )


def array_address(numbers: array[int], first: int = 0) -> ctypes.c_void_p:
    """The address of an item. It holds as long as the array lives and does not grow."""
    return ctypes.c_void_p(numbers.buffer_info()[0] + first * numbers.itemsize)


class TensorAddresses:
    """Addresses of contiguous tensors, in single precision by default. Tensors that had to be
    converted live as long as this object."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype, self.held = dtype, list[Tensor]()

    def at(self, tensor: Tensor | None, dtype: torch.dtype | None = None) -> int:
        assert tensor is not None
        dtype = dtype or self.dtype
        if tensor.dtype is not dtype or not tensor.is_contiguous():
            tensor = tensor.to(dtype).contiguous()
            self.held.append(tensor)
        return tensor.data_ptr()

    def kept(self, tensor: Tensor | None, dtype: torch.dtype | None = None) -> int:
        """The address of a copy that lives as long as this object; 0 of None."""
        if tensor is None:
            return 0
        self.held.append(tensor.detach().to(dtype or self.dtype, copy=True).contiguous())
        return self.held[-1].data_ptr()
