"""Readers take any bytes, and give back exactly what was written; batches lose no row."""

import csv
import json
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otter_cli.core.errors import OtterError
from otter_cli.data.batches import LengthBuckets
from otter_cli.data.datasets import PairDataset
from otter_cli.data.encoding import Encoder
from otter_cli.data.pairs import PreferencePair, read_pairs, shared_dialogue
from otter_cli.data.texts import read_texts

same_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
pairs = st.lists(
    st.tuples(texts, texts).filter(lambda p: p[0] != p[1] and p[0].strip() and p[1].strip()),
    min_size=2,
    max_size=5,
)


@same_folder
@given(content=st.binary(), suffix=st.sampled_from(["jsonl", "csv", "txt", "jsonl.gz"]))
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"any.{suffix}"
    path.write_bytes(content)
    try:
        rows = read_texts(path)
    except OtterError as error:
        assert error.hint  # noqa: PT017 - what is tested is that nothing else is raised
    else:
        assert all(row.strip() for row in rows)


@same_folder
@given(
    values=st.lists(
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["text", "t"]), inner),
            max_leaves=8,
        ),
        min_size=2,
    )
)
def test_any_json_is_read_or_refused(tmp_path: Path, values: list[object]) -> None:
    path = tmp_path / "any.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    try:
        rows = read_texts(path)
    except OtterError as error:
        assert error.hint  # noqa: PT017 - what is tested is that nothing else is raised
    else:
        assert rows == [value["text"] for value in values]  # type: ignore[index]


@same_folder
@given(pairs)
def test_pairs_come_back_from_jsonl_and_csv(tmp_path: Path, written: list[tuple[str, str]]) -> None:
    rows = tmp_path / "pairs.jsonl"
    rows.write_text("".join(json.dumps({"chosen": c, "rejected": r}) + "\n" for c, r in written))
    table = tmp_path / "pairs.csv"
    with open(table, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("chosen", "rejected"), *written])
    expected = [PreferencePair(c, r, shared_dialogue(c, r)) for c, r in written]
    assert read_pairs(rows) == expected
    assert read_pairs(table) == expected


@same_folder
@given(
    written=st.lists(st.tuples(st.text("ab ", min_size=1), st.text("ab ", min_size=1)), min_size=1),
    max_length=st.integers(3, 8),
    keep=st.sampled_from(["start", "end"]),
)
def test_no_pair_of_equal_tokens_is_kept_and_none_of_unequal_ones_lost(
    tiny_tokenizer: Any, written: list[tuple[str, str]], max_length: int, keep: Any
) -> None:
    encoder = Encoder(tiny_tokenizer, max_length, keep=keep)
    pairs = [
        PreferencePair(chosen, rejected, margin=float(i))
        for i, (chosen, rejected) in enumerate(written)
    ]
    data = PairDataset(pairs, encoder)
    each = [tuple(encoder([text]).ids[0] for text in two) for two in written]
    kept = [(i, *two) for i, two in enumerate(each) if two[0] != two[1]]
    assert data.identical == len(written) - len(kept)
    assert list(zip(data.margins, data.chosen, data.rejected, strict=True)) == kept


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=90),
    batch_size=st.integers(1, 12),
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 5),
)
def test_an_epoch_is_a_permutation(
    lengths: list[int], batch_size: int, seed: int, epoch: int
) -> None:
    buckets = LengthBuckets(lengths, batch_size, seed)
    first = epoch * buckets.steps_per_epoch
    batches = [buckets.rows(first + i) for i in range(buckets.steps_per_epoch)]
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert sum(len(batch) < batch_size for batch in batches) <= 1
