"""Whether a base can read the texts that it is to be trained on: generation has the same limits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from otter_cli.core.errors import OtterError
from otter_cli.families import BaseShape

if TYPE_CHECKING:
    from otter_cli.data.datasets import Dataset
    from otter_cli.training.material import Material


def check_lengths(material: Mapping[str, Material], shape: BaseShape) -> None:
    """Raises OtterError for texts beyond the base's positions, and for texts that can't share a
    batch, since the base's rotary angles depend on the length of the longest."""
    for name, found in material.items():
        for data in _parts(found):
            longest = max(data.lengths)
            if longest > shape.max_positions:
                raise OtterError(
                    f"signal {name}: a text of {longest} tokens, and the base has "
                    f"{shape.max_positions} positions",
                    hint=f"max_length: {shape.max_positions}",
                )
            if shape.length_rule is not None:
                shape.length_rule.check_one_side(_shortest(data), longest, f"signal {name}")


def _shortest(data: Dataset) -> int:
    """Of a pair both texts count; `lengths` are those of the longer."""
    rows = range(len(data.lengths))
    return min(int(data.batch([row]).attention_mask.sum(1).min()) for row in rows)


def _parts(material: Material) -> Iterator[Dataset]:
    for data in (material.train, material.validation, material.test):
        if data is not None:
            yield data
