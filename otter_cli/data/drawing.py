"""Which rows a limit keeps: a draw by a seed across categories, in the order of the file.

The head of a file is no sample of it: files are often sorted by category.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from otter_cli.core.digests import sha256_json
from otter_cli.core.errors import OtterError
from otter_cli.core.seeds import derive_seed
from otter_cli.data.records import Place, Record, read_records

# Longer lists of lines are recorded by their digest alone.
_LISTED = 1_000


def draw_rows(categories: Sequence[str], limit: int | None, seed: int = 0) -> list[int]:
    """Indices of `limit` rows, ascending. Each category has its share of them, by largest
    remainder; within a category every row is equally likely. No limit keeps all."""
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
    """How many rows of each category, `limit` in all."""
    total = sum(sizes.values())
    shares = {category: limit * size // total for category, size in sizes.items()}
    # Equal remainders are ordered by the seed: file order would always favour the same ones.
    order = sorted(
        sizes, key=lambda c: (-(limit * sizes[c] % total), derive_seed("remainder", seed, c))
    )
    for category in order[: limit - sum(shares.values())]:
        shares[category] += 1
    return shares


@dataclass(frozen=True)
class RowDraw:
    """Which rows were kept of `of`: the numbers of their lines (or rows), ascending."""

    seed: int
    of: int
    lines: tuple[int, ...]

    @property
    def whole(self) -> bool:
        return len(self.lines) == self.of

    def record(self) -> dict[str, Any]:
        """For a training record: lines where they are few, and their digest."""
        listed = {"lines": list(self.lines)} if len(self.lines) <= _LISTED else {}
        return {
            "seed": self.seed,
            "of": self.of,
            **listed,
            "lines_sha256": sha256_json(list(self.lines)),
        }


class LimitedTable:
    """The rows of a place that a draw keeps. `drawn` says which, once they were read."""

    def __init__(
        self,
        place: Place,
        limit: int,
        seed: int = 0,
        category: Callable[[Record], str] | None = None,
    ) -> None:
        self.place, self.limit, self.seed = place, limit, seed
        self.category = category or category_of
        self.drawn: RowDraw | None = None

    def __str__(self) -> str:
        return str(self.place)

    def records(self) -> Iterator[Record]:
        """Reads the place twice: a large file does not fit into memory."""
        known = [(record.line, self.category(record)) for record in read_records(self.place)]
        kept = draw_rows([category for _, category in known], self.limit, self.seed)
        self.drawn = RowDraw(self.seed, len(known), tuple(known[index][0] for index in kept))
        wanted = set(kept)
        for index, record in enumerate(read_records(self.place)):
            if index in wanted:
                yield record


def category_of(record: Record) -> str:
    """A row's category, where it names one: Spec-Bench's, RewardBench's, or the toxicity of a
    RealToxicityPrompts prompt."""
    for column in ("category", "subset", "section"):
        if isinstance(value := record.values.get(column), str):
            return value
    return toxicity_of(record)


def toxicity_of(record: Record) -> str:
    """RealToxicityPrompts are told apart at 0.5 by the score of the prompt, where a row has one."""
    prompt = record.values.get("prompt")
    score = prompt.get("toxicity") if isinstance(prompt, Mapping) else None
    if not isinstance(score, int | float):
        return ""
    return "toxic" if score >= 0.5 else "non-toxic"
