"""Texts with marked characters: for each class, the spans of a text that it holds for.

A column holds spans `[[start, end], ...]` with `end` exclusive, or single characters
`[3, 4, 5, ...]` as SemEval-2021 task 5 publishes them; in a CSV file either as JSON text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from otter_cli.data.chat_template import ChatText
from otter_cli.data.encoding import Encoder
from otter_cli.data.tables import Record, TableLike, read_rows

if TYPE_CHECKING:
    from torch import Tensor

    from otter_cli.data.datasets import Batch

Span = tuple[int, int]

# The label of a token that holds no character of the text, such as BOS. No loss reads it.
NO_LABEL = -1.0


@dataclass(frozen=True)
class MarkedText:
    """`characters`: for each class, the marked characters of the text."""

    text: str
    characters: tuple[frozenset[int], ...]

    @property
    def identity(self) -> tuple[str, ...]:
        return (self.text,)


def read_marked(
    path: TableLike, *, text: str, spans: Sequence[str], prompt: str | None = None
) -> list[MarkedText]:
    """Texts with a column of `spans` for each class, from a table. The column `prompt` is put
    before the text. In a dialogue, spans count in the last message. Raises OtterError, with file
    and line."""

    def parse(record: Record) -> MarkedText:
        content = record.text(text)
        # A dialogue holds its prompt already.
        start = record.text(prompt) if prompt and not isinstance(content, ChatText) else ""
        offset, length = len(start), len(content)
        if isinstance(content, ChatText):
            if content.answer is None:
                raise record.error(
                    f"the chat template changes the last message of {text!r}, so its spans cannot "
                    "be found in it",
                    "give the text as the template writes it, without chat",
                )
            offset, length = content.answer[0], content.answer[1] - content.answer[0]
        characters = tuple(
            frozenset(i + offset for i in _marked_characters(record, column, length))
            for column in spans
        )
        return MarkedText(start + content if start else content, characters)

    return read_rows(path, parse)


def _marked_characters(record: Record, column: str, length: int) -> set[int]:
    value = record.value(column)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            value = None
    spans = _spans(value)
    if spans is None:
        raise record.error(
            f"{column!r} holds no spans of characters",
            "give [[start, end], ...] with end exclusive, or the marked characters [3, 4, 5]; "
            "[] for none",
        )
    for start, end in spans:
        if not 0 <= start < end <= length:
            raise record.error(
                f"{column!r} marks characters {start} to {end}, and the text has {length}",
                "count characters from 0; end is the first one that is not marked",
            )
    return {i for start, end in spans for i in range(start, end)}


def _spans(value: Any) -> list[Span] | None:
    if not isinstance(value, list):
        return None
    if all(_is_index(item) for item in value):
        return [(item, item + 1) for item in value]
    pairs = [
        (item[0], item[1])
        for item in value
        if isinstance(item, list) and len(item) == 2 and all(map(_is_index, item))
    ]
    return pairs if len(pairs) == len(value) else None


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class _TokenCharacters:
    """Of a token: the characters that it adds to the text, and the white space before them. That
    counts as predicted where the token before is predicted too."""

    own: range
    gap: range


def _token_characters(text: str, spans: Iterable[Span]) -> list[_TokenCharacters]:
    """`spans` are the tokens', in order. White space at a token's ends is no part of it."""
    tokens, reached = [], 0
    for start, end in spans:
        while start < end and text[start].isspace():
            start += 1
        while end > start and text[end - 1].isspace():
            end -= 1
        # Two tokens can hold parts of one character. It counts for the first.
        start = max(start, reached)
        if start < end:
            tokens.append(_TokenCharacters(range(start, end), range(reached, start)))
            reached = end
        else:
            tokens.append(_TokenCharacters(range(0), range(0)))
    return tokens


def _token_table(row: MarkedText, tokens: Sequence[_TokenCharacters]) -> list[list[list[int]]]:
    """For each token, of its own characters and of the white space before them: how many there are,
    and how many of them are marked for each class, [tokens, 2, 1 + classes]."""
    return [
        [
            [len(part), *(len(marked.intersection(part)) for marked in row.characters)]
            for part in (token.own, token.gap)
        ]
        for token in tokens
    ]


class MarkedDataset:
    """Texts with a label for each token and class: 1 where the token holds a marked character."""

    identical = 0

    def __init__(self, texts: Sequence[MarkedText], encoder: Encoder) -> None:
        encoded = encoder([row.text for row in texts])
        self.ids, self.truncation = encoded.ids, encoded.truncation
        self.lengths = [len(ids) for ids in encoded.ids]
        self._ends, self._pad_id = encoded.lengths, encoder.pad_id
        self._classes = [row.characters for row in texts]
        self._tokens = [
            _token_table(row, _token_characters(row.text, encoder.token_spans(row.text, ids)))
            for row, ids in zip(texts, encoded.ids, strict=True)
        ]

    def batch(self, rows: Sequence[int]) -> Batch:
        """`labels` [rows, classes] is the number of marked characters of each text."""
        import torch

        from otter_cli.data.datasets import pad_batch

        padded = pad_batch(
            [self.ids[row] for row in rows], self._pad_id, [self._ends[row] for row in rows]
        )
        classes = len(self._classes[rows[0]])
        size = (*padded.input_ids.shape, classes)
        labels = torch.full(size, NO_LABEL)
        counts = torch.zeros(*padded.input_ids.shape, 2)
        marked = torch.zeros(*padded.input_ids.shape, 2, classes)
        for number, row in enumerate(rows):
            # [tokens, 2, 1 + classes]: all characters, then the marked ones of each class.
            table = torch.tensor(self._tokens[row], dtype=torch.float32)
            counts[number, : len(table)] = table[..., 0]
            marked[number, : len(table)] = table[..., 1:]
            held = table[:, 0, 0] > 0
            labels[number, : len(table)][held] = (table[held, 0, 1:] > 0).float()
        totals = [[float(len(c)) for c in self._classes[row]] for row in rows]
        return replace(
            padded,
            labels=torch.tensor(totals),
            token_labels=labels,
            token_characters=counts,
            marked_characters=marked,
        )


def character_counts(batch: Batch, predicted: Tensor) -> tuple[Tensor, Tensor]:
    """The predicted characters of each text, and those of them that are marked, [rows, classes]
    each. `predicted` [rows, tokens, classes] says which tokens are; the white space between two
    predicted tokens counts with them."""
    import torch

    assert batch.token_characters is not None
    assert batch.marked_characters is not None
    own = predicted.float()
    before = torch.zeros_like(own)
    before[:, 1:] = own[:, :-1]
    both = torch.stack([own, own * before], 2)  # [rows, tokens, 2, classes]
    total = (both * batch.token_characters[..., None]).sum((1, 2))
    return total, (both * batch.marked_characters).sum((1, 2))
