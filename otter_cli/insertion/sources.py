"""Where the first values of an inserted tensor lie in the base's files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from otter_cli.checkpoint.dtypes import FLOATS, Array
from otter_cli.checkpoint.folder import Checkpoint
from otter_cli.core.errors import OtterError
from otter_cli.families import BaseShape

Index = Sequence[int]  # and no array: a plan is made without numpy, whose import takes longer


@dataclass(frozen=True)
class Source:
    """`base[rows, columns] * scale + offset` of the first of `names` that the base has: the
    family's multipliers are folded in here, so that the stream knows none of them."""

    names: tuple[str, ...]
    rows: Index | None = None
    columns: Index | None = None
    scale: float = 1.0
    offset: float = 0.0
    # Stored as [in, out]; rows and columns still mean [out, in].
    transposed: bool = False

    def find(self, base: Checkpoint) -> str | None:
        """The name under which the base has it."""
        return next((name for name in self.names if name in base.tensors), None)

    def read(self, name: str, base: Checkpoint) -> Array:
        """Values in float32. Raises OtterError for a tensor that is quantised in the file."""
        if base.tensors[name].dtype not in FLOATS:
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


def projection_rows(shape: BaseShape, name: str, heads: Index) -> Index:
    """Rows of the base's query, key or value projection that belong to `heads`."""
    c, fused = shape.head_dim, shape.family.attention.fused
    place = ("query", "key", "value").index(name)
    if fused == "by head":
        return head_rows([3 * head + place for head in heads], c)
    before = (0, shape.heads, shape.heads + shape.kv_heads)[place] if fused == "stacked" else 0
    return head_rows([head + before for head in heads], c)


def head_rows(heads: Index, head_dim: int) -> Index:
    """Rows of a projection that belong to `heads`."""
    return [head * head_dim + row for head in heads for row in range(head_dim)]
