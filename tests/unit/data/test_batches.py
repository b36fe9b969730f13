import random

import pytest

from otter_cli.core.errors import OtterError
from otter_cli.data.batches import LengthBuckets, longest_first_batches, split_into_batches


def lengths(count: int, seed: int = 0) -> list[int]:
    return [random.Random(f"{seed} {i}").randint(1, 200) for i in range(count)]


def test_each_epoch_holds_every_row_once() -> None:
    buckets = LengthBuckets(lengths(103), batch_size=8, seed=1)
    assert buckets.steps_per_epoch == 13
    for epoch in range(3):
        steps = range(13 * epoch, 13 * (epoch + 1))
        rows = [row for step in steps for row in buckets.rows(step)]
        assert sorted(rows) == list(range(103))


def test_a_step_is_a_function_of_seed_and_step_alone() -> None:
    sizes = lengths(103)
    forward = LengthBuckets(sizes, 8, seed=1)
    expected = [forward.rows(step) for step in range(40)]
    jumping = LengthBuckets(sizes, 8, seed=1)
    order = random.Random(0).sample(range(40), 40)
    assert {step: jumping.rows(step) for step in order} == dict(enumerate(expected))


def test_seeds_and_epochs_differ() -> None:
    sizes = lengths(400)
    one, other = LengthBuckets(sizes, 8, seed=1), LengthBuckets(sizes, 8, seed=2)
    first = [sorted(one.rows(step)) for step in range(50)]
    assert first != [sorted(other.rows(step)) for step in range(50)]
    assert sorted(first) != sorted(sorted(one.rows(step)) for step in range(50, 100))


def test_rows_of_a_batch_are_of_like_length_and_batches_come_shuffled() -> None:
    sizes = lengths(4000)
    buckets = LengthBuckets(sizes, 16, seed=3)
    batches = [[sizes[row] for row in buckets.rows(step)] for step in range(250)]
    padded = sum(max(batch) * len(batch) for batch in batches)
    assert padded < 1.06 * sum(sizes)
    longest = [max(batch) for batch in batches]
    assert longest != sorted(longest)
    assert 80 < sum(longest[:60]) / 60 < 125


def test_more_batch_than_rows() -> None:
    buckets = LengthBuckets([3, 1, 2], batch_size=16, seed=0)
    assert buckets.steps_per_epoch == 1
    assert sorted(buckets.rows(5)) == [0, 1, 2]


@pytest.mark.parametrize(("sizes", "batch_size"), [([], 4), ([1, 2], 0)])
def test_impossible_batches_are_refused(sizes: list[int], batch_size: int) -> None:
    with pytest.raises(OtterError, match="cannot make batches"):
        LengthBuckets(sizes, batch_size, seed=0)


def test_evaluation_starts_with_the_longest() -> None:
    assert longest_first_batches([5, 9, 1, 9, 7], 2) == [[1, 3], [4, 0], [2]]
    assert split_into_batches([], 3) == []
