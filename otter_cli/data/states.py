"""States of texts: chosen places in each, whose values have targets."""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from otter_cli.core.digests import sha256_json
from otter_cli.core.seeds import derive_seed
from otter_cli.data.chat_template import ChatText
from otter_cli.data.datasets import Batch, pad
from otter_cli.data.encoding import Encoder

NO_PLACE = -1


class States:
    """Texts up to the last of their places, `count` at most, drawn from each text's tokens.

    Equal texts have equal places, whatever else is in the data. `targets` come later. `chat`:
    whether the texts are dialogues.
    """

    identical = 0

    def __init__(self, texts: Sequence[str], encoder: Encoder, count: int, seed: int) -> None:
        encoded = encoder(texts)
        self.chat = any(isinstance(text, ChatText) for text in texts)
        # A dialogue that has ended has no continuation: its states are those before.
        open_ids = [ids[:end] for ids, end in zip(encoded.ids, encoded.lengths, strict=True)]
        self.places = [_places(ids, count, seed) for ids in open_ids]
        self.ids = [ids[: p[-1] + 1] for ids, p in zip(encoded.ids, self.places, strict=True)]
        self.truncation = encoded.truncation
        self.lengths = [len(ids) for ids in self.ids]
        self.targets: list[list[float]] = []
        self._count, self._pad_id = count, encoder.pad_id

    def prefixes(self) -> Iterator[list[int]]:
        """The tokens of every state, text by text."""
        for ids, places in zip(self.ids, self.places, strict=True):
            for place in places:
                yield ids[: place + 1]

    def set_targets(self, by_key: Mapping[str, float]) -> None:
        """Of all states, by their `state_key`."""
        values = iter([by_key[state_key(prefix)] for prefix in self.prefixes()])
        self.targets = [[next(values) for _ in places] for places in self.places]

    def batch(self, rows: Sequence[int]) -> Batch:
        """Before `set_targets` the labels are NaN: texts are checked before they cost rollouts."""
        padded = pad([self.ids[row] for row in rows], self._pad_id)
        places = torch.full((len(rows), self._count), NO_PLACE)
        labels = torch.full((len(rows), self._count), 0.0 if self.targets else math.nan)
        for number, row in enumerate(rows):
            places[number, : len(self.places[row])] = torch.tensor(self.places[row])
            if self.targets:
                labels[number, : len(self.places[row])] = torch.tensor(self.targets[row])
        return replace(padded, labels=labels, places=places)


def state_key(tokens: Sequence[int]) -> str:
    return sha256_json(list(tokens))


def _places(ids: Sequence[int], count: int, seed: int) -> list[int]:
    """Of a text's tokens after the first, which is BOS where there is one."""
    after = range(min(1, len(ids) - 1), len(ids))
    draw = random.Random(derive_seed("places", seed, state_key(ids)))
    return sorted(draw.sample(after, min(count, len(after))))
