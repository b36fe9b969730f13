"""A growing layer of the KV cache holds what a stock one holds, whatever is done to it."""

import random

import pytest
import torch
from transformers.cache_utils import DynamicLayer

from otter_cli.model.cache import GrowingCacheLayer


def _entries(rows: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, 2, count, 4), torch.randn(rows, 2, count, 4)


@pytest.mark.parametrize("seed", range(8))
def test_it_holds_what_a_stock_layer_holds(seed: int) -> None:
    draw, grown, stock = random.Random(seed), GrowingCacheLayer(), DynamicLayer()
    torch.manual_seed(seed)
    rows = draw.randint(1, 3)
    for _ in range(30):
        new = _entries(rows, draw.randint(1, 12))
        for got, want in zip(grown.update(*new), stock.update(*new), strict=True):
            assert torch.equal(got, want)
        if draw.random() < 0.4:
            kept = draw.randint(1, stock.get_seq_length())
            grown.truncate(kept)
            stock.crop(kept - stock.get_seq_length())
        if draw.random() < 0.2:
            index = torch.tensor([draw.randrange(rows) for _ in range(draw.randint(1, 3))])
            for layer in (grown, stock):
                layer.keys, layer.values = layer.keys[index], layer.values[index]
            rows = len(index)
        assert torch.equal(grown.keys, stock.keys) and torch.equal(grown.values, stock.values)
        assert grown.get_seq_length() == stock.get_seq_length()


def test_a_step_copies_nothing_while_there_is_room() -> None:
    layer = GrowingCacheLayer()
    layer.update(*_entries(1, 40))
    place = layer.keys.data_ptr()
    for _ in range(16):
        keys, _ = layer.update(*_entries(1, 1))
        assert keys.data_ptr() == place
    assert layer.update(*_entries(1, 1))[0].data_ptr() != place


def test_room_is_a_bounded_share() -> None:
    layer = GrowingCacheLayer()
    for _ in range(400):
        keys, _ = layer.update(*_entries(1, 1))
        assert keys.untyped_storage().nbytes() <= 4 * 2 * 4 * (1.125 * keys.shape[2] + 17)


def test_transformers_own_ways_to_move_rows_and_slots_work() -> None:
    grown, stock = GrowingCacheLayer(), DynamicLayer()
    new = _entries(2, 9)
    for layer in (grown, stock):
        layer.update(*new)
        layer.crop(-3)
        layer.batch_repeat_interleave(2)
        layer.reorder_cache(torch.tensor([3, 0, 1, 2]))
        layer.batch_select_indices(torch.tensor([0, 2]))
    assert torch.equal(grown.keys, stock.keys)
    grown.reset()
    assert grown.get_seq_length() == 0 and grown.keys is None
    assert torch.equal(grown.update(*new)[0], new[0])
