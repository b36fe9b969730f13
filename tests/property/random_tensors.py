"""Random tensors of every kind a checkpoint holds, and what independent readers make of them."""

from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from hypothesis import strategies as st

from otter_cli.checkpoint.dtypes import DTYPE_BITS, NUMPY_DTYPES, Array
from otter_cli.checkpoint.safetensors_writer import TensorSpec

TORCH = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Stored:
    """A tensor as bytes, so that no library has touched it yet."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @property
    def spec(self) -> TensorSpec:
        return TensorSpec(self.dtype, self.shape)

    def numpy(self) -> Array:
        """The stored elements, bfloat16 as bits."""
        return np.frombuffer(self.data, NUMPY_DTYPES[self.dtype]).reshape(self.shape)

    def torch(self) -> torch.Tensor:
        if not self.data:
            return torch.zeros(self.shape, dtype=TORCH[self.dtype])
        flat = torch.frombuffer(bytearray(self.data), dtype=torch.uint8)
        return flat.view(TORCH[self.dtype]).reshape(self.shape)

    def values(self) -> Array:
        """What reading should give, by torch: the float types of 32 bits and less as float32."""
        tensor = self.torch()
        return (tensor.float() if self.dtype in ("BF16", "F16") else tensor).numpy()


shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@st.composite
def stored(draw: st.DrawFn) -> Stored:
    dtype = draw(st.sampled_from(sorted(TORCH)))
    shape = draw(shapes)
    size = prod(shape) * DTYPE_BITS[dtype] // 8
    data = draw(st.binary(min_size=size, max_size=size))
    # A bool that is neither 0 nor 1 is no bool to torch.
    return Stored(dtype, shape, bytes(byte & 1 for byte in data) if dtype == "BOOL" else data)


names = st.one_of(
    st.from_regex(r"model\.layers\.[0-9]\.(self_attn|mlp)\.[a-z]_proj\.weight", fullmatch=True),
    st.text(min_size=1, max_size=12).filter(str.isprintable),
).filter(lambda name: name != "__metadata__")

tensor_sets = st.dictionaries(names, stored(), min_size=1, max_size=6)
metadata = st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2).filter(
    lambda table: all(text.isprintable() for pair in table.items() for text in pair)
)
