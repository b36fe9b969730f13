"""Batches in parts: every row once, shares that add up, the same losses and gradients."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otter_cli.core.errors import OtterError
from otter_cli.core.jsonlines import read_jsonlines
from otter_cli.training.distributed import ProcessGroup, check_batch_divides
from otter_cli.training.run import train
from tests.support.training import FUTURE, REWARD, TOXICITY, small_graft, small_recipe

STREAMING = {**TOXICITY, "positions": "every", "consistency": 0.5}


@given(rows=st.integers(1, 40), size=st.integers(1, 5), each=st.integers(1, 4))
def test_every_row_is_in_one_part_and_shares_add_up(rows: int, size: int, each: int) -> None:
    parts = [
        p for rank in range(size) for p in ProcessGroup(rank, size).micro_batches(range(rows), each)
    ]
    assert len(parts) == size * each and all(part for part, _ in parts)
    assert [row for part, share in parts if share for row in part] == list(range(rows))
    assert sum(share for _, share in parts) == pytest.approx(1)


@pytest.mark.parametrize("batch_size", [8, 6])
def test_accumulated_passes_give_the_losses_of_whole_batches(
    tiny_llama: Path, tmp_path: Path, batch_size: int
) -> None:
    """6: the last batch of an epoch has less than two rows for each pass."""
    signals = {"reward": REWARD, "toxicity": STREAMING, "future": FUTURE}
    losses = []
    for passes in (1, 2):
        folder = small_graft(tiny_llama, tmp_path / f"{passes}", "reward", "toxicity", "future:2")
        recipe = small_recipe(tmp_path, signals, steps=12, batch_size=batch_size, accumulate=passes)
        train(folder, recipe)
        log = read_jsonlines(folder / "training" / "metrics.jsonl")
        losses.append(
            [[*r["loss"].values(), r["gradient"], r["tokens"]] for r in log if "loss" in r]
        )
    for whole, parts in zip(*losses, strict=True):
        assert parts == pytest.approx(whole, abs=1e-5, rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"batch_size": 7}, "batch_size is 7, which 2 processes with accumulate: 1"),
        ({"batch_size": 6, "accumulate": 2}, "cannot divide into 4"),
        ({"signals": {"reward": {**REWARD, "batch_size": 3}}}, "signals.reward.batch_size is 3"),
    ],
)
def test_a_batch_that_does_not_divide_is_refused(
    tmp_path: Path, settings: dict[str, Any], what: str
) -> None:
    recipe = small_recipe(tmp_path, **settings)
    with pytest.raises(OtterError, match=what) as caught:
        check_batch_divides(recipe, 2)
    assert "all processes together" in caught.value.hint
