"""A limit draws rows by a seed across categories, and says which."""

import json
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otter_cli.core.errors import OtterError
from otter_cli.data.prompts import draw_prompts, read_prompts
from otter_cli.data.splits import LimitedTable, draw_rows
from otter_cli.data.tables import read_records

CATEGORIES = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=80)


@given(categories=CATEGORIES, limit=st.integers(1, 90), seed=st.integers(0, 2**31))
def test_every_category_has_its_share(categories: list[str], limit: int, seed: int) -> None:
    drawn = draw_rows(categories, limit, seed)
    assert drawn == sorted(set(drawn)) == draw_rows(categories, limit, seed)
    assert len(drawn) == min(limit, len(categories))
    sizes, counts = Counter(categories), Counter(categories[index] for index in drawn)
    for category, size in sizes.items():
        exact = Fraction(min(limit, len(categories)) * size, len(categories))
        assert abs(counts[category] - exact) < 1
    # Largest remainder: whoever got one more had no smaller remainder than whoever did not.
    remainders = {c: Fraction(len(drawn) * size, len(categories)) % 1 for c, size in sizes.items()}
    floors = {c: len(drawn) * size // len(categories) for c, size in sizes.items()}
    more = [remainders[c] for c in sizes if counts[c] > floors[c]]
    fewer = [remainders[c] for c in sizes if counts[c] == floors[c]]
    assert not more or not fewer or min(more) >= max(fewer)


@given(categories=CATEGORIES, seed=st.integers(0, 2**31))
def test_no_limit_keeps_every_row(categories: list[str], seed: int) -> None:
    assert draw_rows(categories, None, seed) == list(range(len(categories)))


def test_another_seed_draws_other_rows_and_each_row_can_be_drawn() -> None:
    draws = [draw_rows(["a"] * 50 + ["b"] * 50, 10, seed) for seed in range(100)]
    assert len(set(map(tuple, draws))) > 95
    assert len({row for drawn in draws for row in drawn}) == 100
    with pytest.raises(OtterError, match="a limit of 0 rows"):
        draw_rows(["a"], 0)


def test_a_limited_table_keeps_the_order_of_the_file_and_tells_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"text": f"{i}", "category": "writing" if i < 40 else "math"} for i in range(60)]
    path.write_text("\n".join("\n" * (i % 2) + json.dumps(row) for i, row in enumerate(rows)))
    lines = {record.values["text"]: record.line for record in read_records(path)}
    table = LimitedTable(path, 6)
    kept = list(table.records())
    assert [record.line for record in kept] == sorted(record.line for record in kept)
    assert Counter(record.values["category"] for record in kept) == {"writing": 4, "math": 2}
    assert table.drawn is not None and table.drawn.total == 60 and not table.drawn.is_complete
    assert list(table.drawn.lines) == [lines[record.values["text"]] for record in kept]
    assert [record.line for record in LimitedTable(path, 6).records()] == list(table.drawn.lines)
    assert table.drawn.record()["lines"] == list(table.drawn.lines)


def test_many_lines_are_recorded_by_their_digest(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text\n" + "x\n" * 3_000)
    digests = set()
    for seed in (0, 1):
        table = LimitedTable(path, 1_500, seed)
        list(table.records())
        assert table.drawn is not None and "lines" not in table.drawn.record()
        digests.add(table.drawn.record()["lines_sha256"])
    assert len(digests) == 2


def test_spec_bench_is_drawn_across_its_categories(shared: Path) -> None:
    """The head of the file was 10 prompts of writing and 10 of roleplay."""
    file = shared / "data/prompts/spec-bench.jsonl"
    sizes = Counter(prompt.category for prompt in read_prompts(file))
    found = draw_prompts(file, limit=20)
    counts = Counter(prompt.category for prompt in found.rows)
    assert len(counts) > 5
    assert all(abs(counts[c] - 20 * n / sizes.total()) < 1 for c, n in sizes.items())
    lines = [prompt.line for prompt in found.rows]
    assert found.drawn is not None and lines == list(found.drawn.lines) == sorted(lines)
