"""Whether a base can read the texts that it is to be trained on: generation has the same limits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from otter_cli.core.errors import OtterError
from otter_cli.families import BaseShape
from otter_cli.families.ids import check_ids

_AT_ONCE = 256

if TYPE_CHECKING:
    from otter_cli.data.datasets import Dataset
    from otter_cli.training.material import Material


def check_lengths(material: Mapping[str, Material], shape: BaseShape) -> None:
    """Raises OtterError for texts beyond the base's positions or vocabulary, and for texts that
    can't share a batch, since the base's rotary angles depend on the length of the longest."""
    for name, found in material.items():
        for data in _parts(found):
            longest = max(data.lengths)
            if longest > shape.max_positions:
                raise OtterError(
                    f"signal {name}: a text of {longest} tokens, and the base has "
                    f"{shape.max_positions} positions",
                    hint=f"max_length: {shape.max_positions}",
                )
            _check_ids(data, shape, f"signal {name}")
            if shape.length_rule is not None:
                shape.length_rule.check_one_side(_shortest(data), longest, f"signal {name}")


def _shortest(data: Dataset) -> int:
    """Of a pair both texts count; `lengths` are those of the longer."""
    rows = range(len(data.lengths))
    return min(int(data.batch([row]).attention_mask.sum(1).min()) for row in rows)


def _check_ids(data: Dataset, shape: BaseShape, where: str) -> None:
    rows = len(data.lengths)
    for start in range(0, rows, _AT_ONCE):
        batch = data.batch(range(start, min(start + _AT_ONCE, rows)))
        largest = int(batch.input_ids.max())
        if largest < shape.vocab:
            continue
        for row in range(start, min(start + _AT_ONCE, rows)):
            one = data.batch([row])
            ids = one.input_ids[one.attention_mask.bool()].tolist()
            check_ids([ids], shape, f"{where}: row {row + 1}, text")
        raise OtterError(
            f"{where}: the tokenizer pads with id {largest}, and the base's vocabulary has "
            f"{shape.vocab} tokens",
            hint="name another pad_token in tokenizer_config.json: padding is masked, so that any "
            "token of the vocabulary will do",
        )


def _parts(material: Material) -> Iterator[Dataset]:
    for data in (material.train, material.validation, material.test):
        if data is not None:
            yield data
