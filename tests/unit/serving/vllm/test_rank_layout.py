"""Heads and units over the ranks of an engine: each exactly once, beside its own keys."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from otter_cli.families.shape import BaseShape, base_shape
from otter_cli.graft.config import InsertionConfig, resolve_config
from otter_cli.serving.vllm.rank_layout import (
    EMPTY,
    KVSlice,
    RankLayout,
    TrainedHeads,
    select_places,
)


def shape(heads: int, kv_heads: int) -> BaseShape:
    return base_shape(
        {
            "model_type": "llama",
            "num_hidden_layers": 1,
            "hidden_size": 8 * heads,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "intermediate_size": 96,
            "vocab_size": 32,
        }
    )


def config(of: BaseShape, **options: object) -> InsertionConfig:
    return resolve_config(of, hidden=8, **options)


@given(
    kv=st.sampled_from(["base", "own"]),
    kv_heads=st.sampled_from([1, 2, 4, 8]),
    share=st.integers(1, 2),
    read=st.integers(1, 8),
    ranks=st.sampled_from([1, 2, 4, 8]),
    ffn=st.integers(0, 20),
)
def test_every_head_and_unit_is_on_one_rank_beside_its_keys(
    kv: str, kv_heads: int, share: int, read: int, ranks: int, ffn: int
) -> None:
    base, read = shape(16, kv_heads), min(read, kv_heads)
    start = kv_heads - read if kv == "base" else 0
    inserted = config(base, kv=kv, heads=read * share, kv_heads=read, kv_start=start, ffn=ffn)
    parts = [RankLayout(inserted, base, ranks, rank) for rank in range(ranks)]
    heads = [head for part in parts for head in part.heads]
    assert sorted(head for head in heads if head != EMPTY) == list(range(read * share))
    assert sorted(u for part in parts for u in part.units if u != EMPTY) == list(range(ffn))
    for part in parts:
        assert len(part.heads) == len(parts[0].heads) and len(part.units) == len(parts[0].units)
        # The engine gives every key/value head of a rank the same number of query heads.
        own = part.kv_heads if kv == "own" else _base_heads(kv_heads, ranks, part.rank)
        assert len(part.heads) % len(own) == 0
        group = len(part.heads) // len(own)
        for place, head in enumerate(part.heads):
            if head != EMPTY:
                wanted = head // share + (start if kv == "base" else 0)
                assert own[place // group] == wanted


def _base_heads(kv_heads: int, ranks: int, rank: int) -> list[int]:
    """The base's key/value heads on a rank, as vLLM spreads or replicates them."""
    if kv_heads >= ranks:
        share = kv_heads // ranks
        return list(range(rank * share, (rank + 1) * share))
    return [rank // (ranks // kv_heads)]


@given(
    kv_heads=st.sampled_from([1, 2, 4, 8]),
    share=st.integers(1, 3),
    read=st.integers(1, 8),
    after=st.integers(0, 7),
    ranks=st.sampled_from([1, 2, 4, 8]),
)
def test_a_span_has_the_key_value_heads_that_trained_heads_read(
    kv_heads: int, share: int, read: int, after: int, ranks: int
) -> None:
    base, read = shape(32, kv_heads), min(read, kv_heads)
    start = min(after, kv_heads - read)
    inserted = config(base, kv="base", heads=read * share, kv_heads=read, kv_start=start, ffn=4)
    for rank in range(ranks):
        part, own = RankLayout(inserted, base, ranks, rank), _base_heads(kv_heads, ranks, rank)
        trained = TrainedHeads.of(part.heads)
        assert trained.places == len(part.heads)
        span = KVSlice.of(trained, trained.places // len(own))
        assert 0 <= span.first < span.first + span.count <= len(own)
        # The engine's attention groups the span's queries evenly, each beside its own keys.
        assert len(trained.heads) % span.count == 0
        group = len(trained.heads) // span.count
        for place, head in enumerate(trained.heads):
            if head != EMPTY:
                assert own[span.first + place // group] == start + head // share


@given(places=st.lists(st.sampled_from([EMPTY, 3, 5]), min_size=1, max_size=6))
def test_trained_heads_go_to_their_places_and_come_back(places: list[int]) -> None:
    trained = TrainedHeads.of(places)
    rows = torch.arange(2.0 * 3 * len(trained.heads)).reshape(2, -1) + 1
    filled = trained.pad(rows, 3)
    assert filled.shape == (2, 3 * len(places)) and torch.equal(trained.unpad(filled, 3), rows)
    # All other places are zero heads.
    kept = [EMPTY] * trained.before + trained.heads + [EMPTY] * trained.after
    assert kept == places
    assert filled.count_nonzero() == rows.numel()


def test_zero_heads_are_counted() -> None:
    base = shape(16, 4)
    assert RankLayout(config(base, kv="base", heads=4), base).zero_heads == 0
    assert RankLayout(config(base, kv="base", heads=1), base).zero_heads == 3


@pytest.mark.parametrize("dim", [0, 1])
def test_a_place_without_a_head_is_zero(dim: int) -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    picked = select_places(tensor, [1, EMPTY, 0], dim)
    assert torch.equal(picked.select(dim, 0), tensor.select(dim, 1))
    assert torch.equal(picked.select(dim, 2), tensor.select(dim, 0))
    assert not picked.select(dim, 1).any()
