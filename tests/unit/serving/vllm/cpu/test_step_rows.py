"""Which rows of a step are computed, for any batch."""

from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from otter_cli.serving.vllm.cpu.step_rows import StepRows


def _step(parts: list[tuple[int, int]]) -> tuple[Any, torch.Tensor]:
    """The engine's metadata, and positions, for sequences with (cached, new) numbers of tokens."""
    brought = torch.tensor([new for _, new in parts])
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), brought.cumsum(0)]).int()
    positions = torch.cat([torch.arange(old, old + new) for old, new in parts])
    metadata = SimpleNamespace(
        query_start_loc=starts,
        block_table=torch.zeros(len(parts), 4, dtype=torch.int32),
        max_seq_len=max(old + new for old, new in parts),
    )
    return metadata, positions


PARTS = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), min_size=1, max_size=8)


@given(PARTS, st.data())
def test_the_last_token_of_each_sequence_that_asks(
    parts: list[tuple[int, int]], data: st.DataObject
) -> None:
    metadata, positions = _step(parts)
    asking = tuple(sorted(data.draw(st.sets(st.integers(0, len(parts) - 1)))))
    rows = StepRows.of(metadata, positions, asking)
    if not asking:
        assert rows is None
        return
    assert rows is not None
    ends = [sum(new for _, new in parts[: row + 1]) - 1 for row in asking]
    places = torch.arange(len(positions))
    assert rows.select(places).tolist() == ends
    assert rows.count == len(asking)
    assert rows.sequence.tolist() == list(asking)
    assert rows.visible_slots.tolist() == [sum(parts[row]) for row in asking]
    assert rows.longest == max(map(sum, parts))
    assert rows.sequence.dtype == rows.visible_slots.dtype == torch.int64


@given(PARTS)
def test_every_token_where_nobody_is_asked(parts: list[tuple[int, int]]) -> None:
    metadata, positions = _step(parts)
    rows = StepRows.of(metadata, positions, None)
    assert rows is not None
    assert rows.places is None and rows.count == len(positions)
    assert torch.equal(rows.visible_slots, positions + 1)
    whose = [row for row, (_, new) in enumerate(parts) for _ in range(new)]
    assert rows.sequence.tolist() == whose
    assert rows.sequence.dtype == rows.visible_slots.dtype == torch.int64


def test_a_batch_of_one_token_each_is_not_copied() -> None:
    metadata, positions = _step([(3, 1), (9, 1)])
    rows = StepRows.of(metadata, positions, (0, 1))
    assert rows is not None
    states = torch.randn(2, 4)
    assert rows.select(states) is states
