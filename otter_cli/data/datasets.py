"""Encoded data in memory, and padded batches of it.

There is one class for each form of data: pairs, labelled texts, blocks of plain text, and states
(positions inside texts)."""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from otter_cli.core.errors import OtterError
from otter_cli.core.process import derive_seed
from otter_cli.data.chat_template import ChatText
from otter_cli.data.encoding import Encoder, Truncation, state_key
from otter_cli.data.pairs import PreferencePair, shared_length
from otter_cli.data.texts import LabelledText


@dataclass(frozen=True)
class Batch:
    """Right-padded rows. Tokens that a template writes after a dialogue's last turn are in
    `input_ids`, and count as padding."""

    input_ids: Tensor  # [rows, tokens]
    attention_mask: Tensor  # [rows, tokens], 1 where real
    last: Tensor  # [rows], the index of the last real token
    labels: Tensor | None = None  # [rows, labels], fp32; margins of pairs, [pairs, 1]
    label_start: Tensor | None = None  # [rows], the first token that the labels hold for
    shared_tokens: Tensor | None = None  # [pairs], how many tokens both texts begin with
    state_positions: Tensor | None = None  # [rows, labels], the token of each label; -1: none
    token_labels: Tensor | None = None  # [rows, tokens, classes], 0 or 1; -1: none
    # Of each token, how many characters it adds, and how many of white space before it.
    token_characters: Tensor | None = None  # [rows, tokens, 2]
    marked_characters: Tensor | None = None  # [rows, tokens, 2, classes], the marked ones of these

    @property
    def tokens(self) -> int:
        """The number of tokens, without padding."""
        return int(self.attention_mask.sum())

    def to(self, device: torch.device | str) -> Self:
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{n: t.to(device) for n, t in tensors.items() if t is not None})


class Dataset(Protocol):
    """What the training loop needs: the length of each row, and batches of rows. `identical`: the
    number of pairs that were left out because their two texts have the same tokens."""

    identical: int

    @property
    def lengths(self) -> Sequence[int]: ...

    @property
    def truncation(self) -> Truncation: ...

    def batch(self, rows: Sequence[int]) -> Batch: ...


class PairDataset:
    """Preference pairs. A batch of n pairs has 2 n rows: the chosen texts, then the rejected. With
    `share` it has the number of tokens that the two texts of each pair begin with. A pair whose
    texts have the same tokens, for example after a cut, is left out: its scores are equal."""

    def __init__(
        self, pairs: Sequence[PreferencePair], encoder: Encoder, *, share: bool = False
    ) -> None:
        chosen = encoder([pair.chosen for pair in pairs], "chosen text")
        rejected = encoder([pair.rejected for pair in pairs], "rejected text")
        self.truncation = chosen.truncation + rejected.truncation
        equal = [a == b for a, b in zip(chosen.read_ids, rejected.read_ids, strict=True)]
        kept = [row for row, same in enumerate(equal) if not same]
        self.identical = sum(equal)
        self.chosen = [chosen.ids[row] for row in kept]
        self.rejected = [rejected.ids[row] for row in kept]
        self._ends = [chosen.lengths[row] for row in kept], [rejected.lengths[row] for row in kept]
        self.lengths = [max(map(len, two)) for two in zip(self.chosen, self.rejected, strict=True)]
        self.shared = [self._shared(row) for row in range(len(kept))] if share else []
        # Either all rows of a file have a margin, or none.
        margins = [pairs[row].margin for row in kept]
        self.margins = [margin for margin in margins if margin is not None]
        self._pad_id = encoder.pad_id

    def batch(self, rows: Sequence[int]) -> Batch:
        texts = [self.chosen[row] for row in rows] + [self.rejected[row] for row in rows]
        ends = [self._ends[0][row] for row in rows] + [self._ends[1][row] for row in rows]
        padded = pad_batch(texts, self._pad_id, ends)
        if self.shared:
            padded = replace(padded, shared_tokens=torch.tensor([self.shared[row] for row in rows]))
        if not self.margins:
            return padded
        return replace(padded, labels=torch.tensor([[self.margins[row]] for row in rows]))

    def _shared(self, row: int) -> int:
        chosen, rejected = self._ends
        return shared_length(self.chosen[row][: chosen[row]], self.rejected[row][: rejected[row]])


class LabelledDataset:
    """Texts with their labels."""

    identical = 0

    def __init__(self, texts: Sequence[LabelledText], encoder: Encoder) -> None:
        encoded = encoder([row.text for row in texts])
        self.ids = encoded.ids
        self.truncation = encoded.truncation
        self.lengths = [len(ids) for ids in encoded.ids]
        self._ends = encoded.lengths
        self.labels = torch.tensor([row.labels for row in texts], dtype=torch.float32)
        self.label_start = torch.tensor(
            [
                0 if row.since is None else encoder.token_at_character(row.text, ids, row.since)
                for row, ids in zip(texts, encoded.ids, strict=True)
            ]
        )
        self._pad_id = encoder.pad_id

    def batch(self, rows: Sequence[int]) -> Batch:
        ends = [self._ends[row] for row in rows]
        padded = pad_batch([self.ids[row] for row in rows], self._pad_id, ends)
        index = list(rows)
        return replace(padded, labels=self.labels[index], label_start=self.label_start[index])


class BlockDataset:
    """Plain texts joined end to end and cut into blocks of `block` tokens, without padding.

    Each text keeps its BOS, and gets an EOS with `eos`; a dialogue stays as its template writes it.
    Long texts continue in the next block. Tokens after the last whole block are left out, and
    counted in `left_over`.
    """

    identical = 0

    def __init__(
        self, texts: Sequence[str], tokenizer: object, block: int, *, eos: bool = True
    ) -> None:
        # No text reaches this limit: nothing is truncated.
        encoder = Encoder(tokenizer, max_length=2**62, eos=eos)
        joined = [token for ids in encoder(texts).ids for token in ids]
        count, self.left_over = divmod(len(joined), block)
        if count == 0:
            raise OtterError(
                f"{len(texts)} texts have {len(joined)} tokens, less than one block of {block}",
                hint="give more text, or shorter blocks",
            )
        self.ids = torch.tensor(joined[: count * block]).view(count, block)
        self.truncation = Truncation(0, len(texts), block)
        self.lengths = [block] * count

    def batch(self, rows: Sequence[int]) -> Batch:
        ids = self.ids[list(rows)]
        last = torch.full((len(rows),), ids.shape[1] - 1)
        return Batch(ids, torch.ones_like(ids), last)


def pad_batch(
    texts: Sequence[Sequence[int]], pad_id: int, ends: Sequence[int] | None = None
) -> Batch:
    """Rows padded on the right to the longest of them. `ends`: the number of real tokens of each,
    by default all."""
    widest = max(len(ids) for ids in texts)
    lengths = torch.tensor([len(ids) for ids in texts] if ends is None else list(ends))
    input_ids = torch.full((len(texts), widest), pad_id)
    for row, ids in enumerate(texts):
        input_ids[row, : len(ids)] = torch.tensor(ids)
    attention_mask = (torch.arange(widest) < lengths[:, None]).long()
    return Batch(input_ids, attention_mask, lengths - 1)


NO_POSITION = -1


class StateDataset:
    """States of texts: up to `count` positions of each, drawn from its tokens. Each text is cut
    after the last of them.

    Equal texts have equal positions, whatever else is in the data. `targets` are set later. `chat`:
    whether the texts are dialogues.
    """

    identical = 0

    def __init__(self, texts: Sequence[str], encoder: Encoder, count: int, seed: int) -> None:
        encoded = encoder(texts)
        self.chat = any(isinstance(text, ChatText) for text in texts)
        # A finished dialogue has no continuation, so its states lie before its end.
        open_ids = [ids[:end] for ids, end in zip(encoded.ids, encoded.lengths, strict=True)]
        self.positions = [_draw_positions(ids, count, seed) for ids in open_ids]
        self.ids = [ids[: p[-1] + 1] for ids, p in zip(encoded.ids, self.positions, strict=True)]
        self.truncation = encoded.truncation
        self.lengths = [len(ids) for ids in self.ids]
        self.targets: list[list[float]] = []
        self._count, self._pad_id = count, encoder.pad_id

    def prefixes(self) -> Iterator[list[int]]:
        """The tokens of every state, text by text."""
        for ids, positions in zip(self.ids, self.positions, strict=True):
            for position in positions:
                yield ids[: position + 1]

    def set_targets(self, by_key: Mapping[str, float]) -> None:
        """The targets of all states, by `state_key`."""
        values = iter([by_key[state_key(prefix)] for prefix in self.prefixes()])
        self.targets = [[next(values) for _ in positions] for positions in self.positions]

    def batch(self, rows: Sequence[int]) -> Batch:
        """Before `set_targets` the labels are NaN: texts are checked before rollouts start."""
        padded = pad_batch([self.ids[row] for row in rows], self._pad_id)
        positions = torch.full((len(rows), self._count), NO_POSITION)
        labels = torch.full((len(rows), self._count), 0.0 if self.targets else math.nan)
        for number, row in enumerate(rows):
            positions[number, : len(self.positions[row])] = torch.tensor(self.positions[row])
            if self.targets:
                labels[number, : len(self.positions[row])] = torch.tensor(self.targets[row])
        return replace(padded, labels=labels, state_positions=positions)


def _draw_positions(ids: Sequence[int], count: int, seed: int) -> list[int]:
    """Positions after the first token, which may be BOS."""
    candidates = range(min(1, len(ids) - 1), len(ids))
    draw = random.Random(derive_seed("places", seed, state_key(ids)))
    return sorted(draw.sample(candidates, min(count, len(candidates))))
