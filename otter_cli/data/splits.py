"""Which rows of a table are used: drawn by a limit, or set aside for testing and validation.

Draws depend on a seed and the categories; held-out rows are chosen by their texts, and rows that
share a text stay together. Overlap of training and test data is counted here too."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from otter_cli.core.digests import sha256_json
from otter_cli.core.errors import OtterError
from otter_cli.core.formatting import percent_text
from otter_cli.core.process import derive_seed
from otter_cli.data.tables import Record, TableLike, read_records


class HasIdentity(Protocol):
    @property
    def identity(self) -> tuple[str, ...]:
        """The texts that must not occur in both training and test data."""


@dataclass(frozen=True)
class Overlap:
    """How many of `test` rows share a text with training rows, and the first of them."""

    shared: int
    test: int
    rows: tuple[int, ...]

    @property
    def share(self) -> float:
        return self.shared / self.test if self.test else 0.0


def find_overlap(train: Sequence[HasIdentity], test: Sequence[HasIdentity]) -> Overlap:
    """Texts that differ in case and white space alone count as the same."""
    seen = {normal_text(text) for row in train for text in row.identity}
    rows = [
        i for i, row in enumerate(test) if any(normal_text(text) in seen for text in row.identity)
    ]
    return Overlap(len(rows), len(test), tuple(rows[:10]))


def normal_text(text: str) -> str:
    """A text for comparison, without case and repeated white space."""
    return " ".join(text.casefold().split())


# A longer list of lines is recorded by its digest alone.
_MAX_LISTED_LINES = 1_000


def draw_rows(categories: Sequence[str], limit: int | None, seed: int = 0) -> list[int]:
    """Indices of `limit` rows, ascending; without a limit all. Each category gets its share, by
    largest remainder. Within a category every row is equally likely."""
    if limit is not None and limit < 1:
        raise OtterError(f"a limit of {limit} rows", hint="at least 1, or no limit")
    if limit is None or limit >= len(categories):
        return list(range(len(categories)))
    members: dict[str, list[int]] = {}
    for index, category in enumerate(categories):
        members.setdefault(category, []).append(index)
    drawn: list[int] = []
    for category, count in _shares({c: len(m) for c, m in members.items()}, limit, seed).items():
        drawn += random.Random(derive_seed("limit", seed, category)).sample(
            members[category], count
        )
    return sorted(drawn)


def _shares(sizes: Mapping[str, int], limit: int, seed: int) -> dict[str, int]:
    """The number of rows of each category, `limit` in all."""
    total = sum(sizes.values())
    shares = {category: limit * size // total for category, size in sizes.items()}
    # The seed orders equal remainders. File order would always favour the same categories.
    order = sorted(
        sizes, key=lambda c: (-(limit * sizes[c] % total), derive_seed("remainder", seed, c))
    )
    for category in order[: limit - sum(shares.values())]:
        shares[category] += 1
    return shares


@dataclass(frozen=True)
class RowDraw:
    """Which of `total` rows were kept: the numbers of their lines (or rows), ascending."""

    seed: int
    total: int
    lines: tuple[int, ...]

    @property
    def is_complete(self) -> bool:
        return len(self.lines) == self.total

    def record(self) -> dict[str, Any]:
        """For a training record: the digest of the lines, and the lines if they are few."""
        listed = {"lines": list(self.lines)} if len(self.lines) <= _MAX_LISTED_LINES else {}
        return {
            "seed": self.seed,
            "of": self.total,
            **listed,
            "lines_sha256": sha256_json(list(self.lines)),
        }


class LimitedTable:
    """The rows of a table that a draw keeps. `drawn` says which, after they were read."""

    def __init__(
        self,
        table: TableLike,
        limit: int,
        seed: int = 0,
        category: Callable[[Record], str] | None = None,
    ) -> None:
        self.table, self.limit, self.seed = table, limit, seed
        self.category = category or category_of
        self.drawn: RowDraw | None = None

    def __str__(self) -> str:
        return str(self.table)

    def records(self) -> Iterator[Record]:
        """Reads the table twice, since a large file does not fit into memory."""
        rows = [(record.line, self.category(record)) for record in read_records(self.table)]
        indices = draw_rows([category for _, category in rows], self.limit, self.seed)
        self.drawn = RowDraw(self.seed, len(rows), tuple(rows[index][0] for index in indices))
        kept = set(indices)
        for index, record in enumerate(read_records(self.table)):
            if index in kept:
                yield record


def category_of(record: Record) -> str:
    """A row's category of Spec-Bench or RewardBench, or the toxicity of a RealToxicityPrompts
    prompt; else ""."""
    for column in ("category", "subset", "section"):
        if isinstance(value := record.values.get(column), str):
            return value
    return toxicity_of(record)


def toxicity_of(record: Record) -> str:
    """RealToxicityPrompts divides its prompts at a score of 0.5; "" for a row without a score."""
    prompt = record.values.get("prompt")
    score = prompt.get("toxicity") if isinstance(prompt, Mapping) else None
    if not isinstance(score, int | float):
        return ""
    return "toxic" if score >= 0.5 else "non-toxic"


# Digests are compared with the share at this resolution.
_RESOLUTION = 10_000
# A larger relative error of the share is corrected.
_TOLERANCE = 0.1


@dataclass(frozen=True)
class Split:
    """Rows in their order. A group is a set of rows that share texts; `groups` counts them all,
    `held_out_groups` those that are held out, `largest` the rows of the largest. `by_bound`: the
    digests alone decided."""

    training: Sequence[Any]
    held_out: Sequence[Any]
    groups: int
    held_out_groups: int
    largest: int
    by_bound: bool

    def record(self, share: float) -> dict[str, Any]:
        return {
            "share": share,
            "rows": len(self.held_out),
            "of": len(self.training) + len(self.held_out),
            "groups": self.held_out_groups,
            "of_groups": self.groups,
            "sha256": rows_digest(self.held_out),
            "rule": "digest of the text"
            if self.by_bound
            else "digest of the text, up to the share",
        }

    def description(self, share: float, purpose: str) -> str:
        """How many rows were set aside, and why they are not exactly the share."""
        count, rows = len(self.held_out), len(self.training) + len(self.held_out)
        text = (
            f"{purpose}: {count} of {rows} rows ({percent_text(count / rows)}, "
            f"{percent_text(share)} asked for), chosen by their texts"
        )
        if self.groups == rows:
            return text
        return (
            f"{text}; rows that share a prompt or text stay together: {self.held_out_groups} of "
            f"{self.groups} such groups, the largest of {self.largest} rows"
        )


def rows_digest(rows: Sequence[Any]) -> str:
    """A digest of the texts of rows, whatever their order."""
    return sha256_json(sorted(map(_row_key, rows)))


def split_rows(rows: Sequence[Any], share: float, purpose: str, file: str) -> Split:
    """Sets a `share` of the rows aside, by digests of their texts and of the `purpose`.

    A group of rows that share a text stays together. If the digests alone miss the share by more
    than a tenth of it, as in small files, groups are taken in the order of their digests while they
    fit. Raises OtterError where one side would be empty.
    """
    groups = [sorted(group) for group in _groups([_texts(row) for row in rows])]
    digests = [
        derive_seed(purpose, min(_row_key(rows[index]) for index in group)) for group in groups
    ]
    aside = [g for g, digest in enumerate(digests) if digest % _RESOLUTION < _RESOLUTION * share]
    target = share * len(rows)
    by_bound = abs(sum(len(groups[g]) for g in aside) - target) <= _TOLERANCE * target
    if not by_bound:
        order = sorted(range(len(groups)), key=lambda g: (digests[g] % _RESOLUTION, digests[g]))
        aside = _fitting(order, [len(group) for group in groups], round(target))
    indices = {index for g in aside for index in groups[g]}
    if not 0 < len(indices) < len(rows):
        raise OtterError(
            f"{file}: {purpose.replace(' ', '_')} {share} of {len(rows)} rows in {len(groups)} "
            f"groups that share texts leaves {len(rows) - len(indices)} to train on and "
            f"{len(indices)} to test",
            hint="give more rows, or a test file",
        )
    return Split(
        training=[row for index, row in enumerate(rows) if index not in indices],
        held_out=[row for index, row in enumerate(rows) if index in indices],
        groups=len(groups),
        held_out_groups=len(aside),
        largest=max(map(len, groups)),
        by_bound=by_bound,
    )


def _fitting(order: Sequence[int], sizes: Sequence[int], target: int) -> list[int]:
    """Groups in `order` that fit into `target` rows; then the smallest of the others if that comes
    nearer, or if none fits. One group stays for training."""
    taken: list[int] = []
    left = min(target, sum(sizes) - 1)
    if left < 1:
        return taken
    for group in order:
        if sizes[group] <= left:
            taken.append(group)
            left -= sizes[group]
    rest = [group for group in order if group not in set(taken)]
    smallest = min(rest, key=lambda group: sizes[group])
    if len(rest) > 1 and (not taken or sizes[smallest] - left < left):
        taken.append(smallest)
    return taken


def _groups(texts: Sequence[Sequence[str]]) -> list[list[int]]:
    """Sets of rows that share texts, directly or through other rows."""
    parent = list(range(len(texts)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first: dict[str, int] = {}
    for index, row_texts in enumerate(texts):
        for text in row_texts:
            if (other := first.setdefault(text, index)) != index:
                parent[root(index)] = root(other)
    groups: dict[int, list[int]] = {}
    for index in range(len(texts)):
        groups.setdefault(root(index), []).append(index)
    return list(groups.values())


def _texts(row: Any) -> list[str]:
    return [normal_text(text) for text in ([row] if isinstance(row, str) else row.identity)]


def _row_key(row: Any) -> str:
    return row if isinstance(row, str) else "\x1f".join(row.identity)
