"""Rows set aside for testing: chosen by their texts, and never apart from rows that share one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from otter_cli.core.digests import sha256_json
from otter_cli.core.errors import OtterError
from otter_cli.core.seeds import derive_seed
from otter_cli.core.units import percent_text
from otter_cli.data.overlap import normal_text

# Digests are compared with the asked share at this resolution.
_PARTS = 10_000
# A share that is off by more than a tenth of itself is mended.
_TOLERANCE = 0.1


@dataclass(frozen=True)
class Split:
    """`kept` and `aside` hold rows in their order; `groups` are sets of rows that share a text."""

    kept: Sequence[Any]
    aside: Sequence[Any]
    groups: int
    groups_aside: int
    largest: int
    by_bound: bool

    def record(self, share: float) -> dict[str, Any]:
        return {
            "share": share,
            "rows": len(self.aside),
            "of": len(self.kept) + len(self.aside),
            "groups": self.groups_aside,
            "of_groups": self.groups,
            "sha256": rows_digest(self.aside),
            "rule": "digest of the text"
            if self.by_bound
            else "digest of the text, up to the share",
        }

    def sentence(self, share: float, why: str) -> str:
        """What was set aside, and why it is not the asked share where it is not."""
        rows = len(self.kept) + len(self.aside)
        told = (
            f"{why}: {len(self.aside)} of {rows} rows ({percent_text(len(self.aside) / rows)}, "
            f"{percent_text(share)} asked for), chosen by their texts"
        )
        if self.groups == rows:
            return told
        return (
            f"{told}; rows that share a prompt or text stay together: {self.groups_aside} of "
            f"{self.groups} such groups, the largest of {self.largest} rows"
        )


def rows_digest(rows: Sequence[Any]) -> str:
    """Of which texts these are, whatever their order."""
    return sha256_json(sorted(map(_key, rows)))


def split_rows(rows: Sequence[Any], share: float, why: str, where: str) -> Split:
    """A `share` of the rows by the digests of their texts, another one for another reason `why`.

    A group of rows that share a text stays together. Where the digests alone stray from the share
    by more than a tenth of it, as they do in small files, groups are taken in the order of their
    digests as long as they fit. OtterError where one side would be empty.
    """
    groups = [sorted(group) for group in _groups([_texts(row) for row in rows])]
    digests = [derive_seed(why, min(_key(rows[index]) for index in group)) for group in groups]
    aside = [g for g, digest in enumerate(digests) if digest % _PARTS < _PARTS * share]
    target = share * len(rows)
    by_bound = abs(sum(len(groups[g]) for g in aside) - target) <= _TOLERANCE * target
    if not by_bound:
        order = sorted(range(len(groups)), key=lambda g: (digests[g] % _PARTS, digests[g]))
        aside = _fitting(order, [len(group) for group in groups], round(target))
    indices = {index for g in aside for index in groups[g]}
    if not 0 < len(indices) < len(rows):
        raise OtterError(
            f"{where}: {why.replace(' ', '_')} {share} of {len(rows)} rows in {len(groups)} groups "
            f"that share texts leaves {len(rows) - len(indices)} to train on and {len(indices)} "
            "to test",
            hint="give more rows, or a test file",
        )
    return Split(
        kept=[row for index, row in enumerate(rows) if index not in indices],
        aside=[row for index, row in enumerate(rows) if index in indices],
        groups=len(groups),
        groups_aside=len(aside),
        largest=max(map(len, groups)),
        by_bound=by_bound,
    )


def _fitting(order: Sequence[int], sizes: Sequence[int], target: int) -> list[int]:
    """Groups in `order` while they fit into `target` rows; the smallest of the others where that
    comes nearer, or where none fits. One group stays for training."""
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
    """Rows that share a text, directly or through others, together."""
    parent = list(range(len(texts)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first: dict[str, int] = {}
    for index, own in enumerate(texts):
        for text in own:
            if (other := first.setdefault(text, index)) != index:
                parent[root(index)] = root(other)
    groups: dict[int, list[int]] = {}
    for index in range(len(texts)):
        groups.setdefault(root(index), []).append(index)
    return list(groups.values())


def _texts(row: Any) -> list[str]:
    return [normal_text(text) for text in ([row] if isinstance(row, str) else row.identity)]


def _key(row: Any) -> str:
    return row if isinstance(row, str) else "\x1f".join(row.identity)
