"""Tokenised data in memory, and the padded batches made of it."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from otter_cli.core.errors import OtterError
from otter_cli.data.encoding import Encoder, Truncation
from otter_cli.data.labelled import LabelledText
from otter_cli.data.preference import Pair, shared_length


@dataclass(frozen=True)
class Batch:
    """Right-padded rows; `last` is the index of each row's last real token. What a template writes
    after the end of a dialogue's last turn is there and counts as padding."""

    input_ids: Tensor  # [rows, tokens]
    attention_mask: Tensor  # [rows, tokens], 1 where real
    last: Tensor  # [rows]
    labels: Tensor | None = None  # [rows, labels], fp32; of pairs their margins, [pairs, 1]
    since: Tensor | None = None  # [rows], the token from which on labels hold
    shared: Tensor | None = None  # [pairs], the tokens that both texts of a pair begin with
    places: Tensor | None = None  # [rows, labels], the token that each label is for; -1: none

    @property
    def tokens(self) -> int:
        """Real tokens, padding not counted."""
        return int(self.attention_mask.sum())

    def to(self, device: torch.device | str) -> Self:
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{n: t.to(device) for n, t in tensors.items() if t is not None})


class Dataset(Protocol):
    """What a training loop needs: how long each row is, and a batch of chosen rows. `identical`:
    rows that were left out since nothing tells their two texts apart."""

    identical: int

    @property
    def lengths(self) -> Sequence[int]: ...

    @property
    def truncation(self) -> Truncation: ...

    def batch(self, rows: Sequence[int]) -> Batch: ...


class Pairs:
    """Preference pairs; a batch of n rows has 2 n texts: the chosen ones, then the rejected. With
    `share` it says how many tokens the two of each have in common. A pair whose texts have the same
    tokens, as after a cut, is left out: the two scores differ by rounding alone."""

    def __init__(self, pairs: Sequence[Pair], encoder: Encoder, *, share: bool = False) -> None:
        chosen = encoder([pair.chosen for pair in pairs], "chosen text")
        rejected = encoder([pair.rejected for pair in pairs], "rejected text")
        self.truncation = chosen.truncation + rejected.truncation
        alike = [one == other for one, other in zip(chosen.read, rejected.read, strict=True)]
        kept = [row for row, same in enumerate(alike) if not same]
        self.identical = sum(alike)
        self.chosen = [chosen.ids[row] for row in kept]
        self.rejected = [rejected.ids[row] for row in kept]
        self._ends = [chosen.lengths[row] for row in kept], [rejected.lengths[row] for row in kept]
        self.lengths = [max(map(len, two)) for two in zip(self.chosen, self.rejected, strict=True)]
        self.shared = [self._shared(row) for row in range(len(kept))] if share else []
        # All of a file have a margin, or none.
        margins = [pairs[row].margin for row in kept]
        self.margins = [margin for margin in margins if margin is not None]
        self._pad_id = encoder.pad_id

    def batch(self, rows: Sequence[int]) -> Batch:
        texts = [self.chosen[row] for row in rows] + [self.rejected[row] for row in rows]
        ends = [self._ends[0][row] for row in rows] + [self._ends[1][row] for row in rows]
        padded = pad(texts, self._pad_id, ends)
        if self.shared:
            padded = replace(padded, shared=torch.tensor([self.shared[row] for row in rows]))
        if not self.margins:
            return padded
        return replace(padded, labels=torch.tensor([[self.margins[row]] for row in rows]))

    def _shared(self, row: int) -> int:
        chosen, rejected = self._ends
        return shared_length(self.chosen[row][: chosen[row]], self.rejected[row][: rejected[row]])


class Labelled:
    """Texts with their labels."""

    identical = 0

    def __init__(self, texts: Sequence[LabelledText], encoder: Encoder) -> None:
        encoded = encoder([row.text for row in texts])
        self.ids = encoded.ids
        self.truncation = encoded.truncation
        self.lengths = [len(ids) for ids in encoded.ids]
        self._ends = encoded.lengths
        self.labels = torch.tensor([row.labels for row in texts], dtype=torch.float32)
        self.since = torch.tensor(
            [
                0 if row.since is None else encoder.place(row.text, ids, row.since)
                for row, ids in zip(texts, encoded.ids, strict=True)
            ]
        )
        self._pad_id = encoder.pad_id

    def batch(self, rows: Sequence[int]) -> Batch:
        ends = [self._ends[row] for row in rows]
        padded = pad([self.ids[row] for row in rows], self._pad_id, ends)
        chosen = list(rows)
        return replace(padded, labels=self.labels[chosen], since=self.since[chosen])


class Blocks:
    """Plain texts joined end to end and cut into blocks of `block` tokens: nothing is padded.

    Each text keeps its BOS, and gets an EOS with `eos`; a dialogue is as its template writes it.
    Long texts go on in the next block; the tokens after the last whole block are left out, and
    counted in `left_over`.
    """

    identical = 0

    def __init__(
        self, texts: Sequence[str], tokenizer: object, block: int, *, eos: bool = True
    ) -> None:
        # A limit that no text reaches: nothing is truncated here.
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


def pad(texts: Sequence[Sequence[int]], pad_id: int, ends: Sequence[int] | None = None) -> Batch:
    """Rows padded on the right to the longest of them; `ends`: how many tokens of each are real,
    by default all."""
    widest = max(len(ids) for ids in texts)
    lengths = torch.tensor([len(ids) for ids in texts] if ends is None else list(ends))
    input_ids = torch.full((len(texts), widest), pad_id)
    for row, ids in enumerate(texts):
        input_ids[row, : len(ids)] = torch.tensor(ids)
    attention_mask = (torch.arange(widest) < lengths[:, None]).long()
    return Batch(input_ids, attention_mask, lengths - 1)
