"""One inserted tensor: its name, its shape, and where a copied first value lies in the base.

A weight is stored as in torch.nn.Linear, [out, in].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

from otter_cli.checkpoint.dtypes import FLOAT_DTYPES, Array
from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.core.errors import OtterError
from otter_cli.families.shape import BaseShape

Indices = Sequence[int]  # and no array: a plan is made without numpy, whose import takes longer


@dataclass(frozen=True)
class CopySource:
    """`base[rows, columns] * scale + offset` of the first of `names` that the base has: the
    family's multipliers are folded in here, so that the stream knows none of them."""

    names: tuple[str, ...]
    rows: Indices | None = None
    columns: Indices | None = None
    scale: float = 1.0
    offset: float = 0.0
    # Stored as [in, out]; rows and columns still mean [out, in].
    transposed: bool = False

    def find(self, base: Checkpoint) -> str | None:
        """The name under which the base has it."""
        return next((name for name in self.names if name in base.tensors), None)

    def read(self, name: str, base: Checkpoint) -> Array:
        """Values in float32. Raises OtterError for a tensor that is quantised in the file."""
        if base.tensors[name].dtype not in FLOAT_DTYPES:
            raise OtterError(
                f"{base.path}: {name} is stored as {base.tensors[name].dtype}: no copy of it fits",
                hint="graft with --init normal, or onto an unquantised checkpoint",
            )
        import numpy as np

        rows, columns = (
            None if i is None else np.array(i, np.int64) for i in (self.rows, self.columns)
        )
        if self.transposed:
            values = base.read(name, rows=columns, columns=rows).T
        else:
            values = base.read(name, rows=rows, columns=columns)
        if self.scale != 1.0 or self.offset:
            values = values * np.float32(self.scale) + np.float32(self.offset)
        return np.ascontiguousarray(values, np.float32)


def projection_rows(shape: BaseShape, name: str, heads: Indices) -> Indices:
    """Rows of the base's query, key or value projection that belong to `heads`."""
    c, fused = shape.head_dim, shape.family.attention.fused
    place = ("query", "key", "value").index(name)
    if fused == "interleaved":
        return head_rows([3 * head + place for head in heads], c)
    before = (0, shape.heads, shape.heads + shape.kv_heads)[place] if fused == "stacked" else 0
    return head_rows([head + before for head in heads], c)


def head_rows(heads: Indices, head_dim: int) -> Indices:
    """Rows of a projection that belong to `heads`."""
    return [head * head_dim + row for head in heads for row in range(head_dim)]


TensorRole = Literal["matrix", "output", "norm", "bias", "embedding", "signal"]
# What `copy` writes where there is nothing to copy: `units` picks the mirrored ones.
FillRule = Literal["zeros", "ones", "normal", "units"]


@dataclass(frozen=True)
class InsertedTensor:
    """One tensor. The product of an output is added to z; `source` is what `copy` takes from the
    base, `fill` what it writes where the base has nothing of the kind."""

    name: str
    shape: tuple[int, ...]
    role: TensorRole
    source: CopySource | None = None
    fill: FillRule = "zeros"

    @property
    def count(self) -> int:
        return prod(self.shape)
