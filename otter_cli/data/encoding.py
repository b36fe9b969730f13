"""Texts to token ids. Every truncated text is counted.

The tokenizer adds BOS, EOS is appended on request. Dialogues have their ids already."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from otter_cli.core.digests import sha256_json
from otter_cli.core.errors import OtterError
from otter_cli.core.formatting import percent_text
from otter_cli.data.chat_template import ChatText, turn_length


@dataclass(frozen=True)
class Truncation:
    """How many of `texts` were longer than the limit and lost tokens."""

    cut: int
    texts: int
    max_length: int

    @property
    def share(self) -> float:
        return self.cut / self.texts if self.texts else 0.0

    def check(self, allowed: float = 0.05) -> None:
        """Raises OtterError when more than the share `allowed` was cut."""
        if self.share > allowed:
            raise OtterError(
                f"{self.cut} of {self.texts} texts ({percent_text(self.share)}) are longer than "
                f"{self.max_length} tokens and would be cut; {percent_text(allowed)} is allowed",
                hint="raise max_length, shorten the texts, or allow more truncation",
            )

    def __add__(self, other: "Truncation") -> "Truncation":
        longest = max(self.max_length, other.max_length)
        return Truncation(self.cut + other.cut, self.texts + other.texts, longest)


@dataclass(frozen=True)
class Encoded:
    """Token ids of each text, and what was cut. `lengths`: the number of tokens up to the one at
    which a signal of the whole text is read. Only in dialogues other tokens can follow."""

    ids: list[list[int]]
    truncation: Truncation
    lengths: list[int]

    @property
    def read_ids(self) -> list[list[int]]:
        """The token ids of each text that such a signal reads."""
        return [ids[:end] for ids, end in zip(self.ids, self.lengths, strict=True)]


@dataclass(frozen=True)
class Encoder:
    """Texts to tokens: BOS as the tokenizer adds it, EOS on request, cut to `max_length`.

    `keep`: which end of a long text stays. A reward is read at the last token, so "end" is the
    default. BOS and EOS always stay. `allow_empty`: a text may have no token but BOS or EOS.

    A dialogue (`ChatText`) has its ids already, and nothing is added. With `eos` its signal is read
    at the token that ends the last turn, otherwise at the token before it.
    """

    tokenizer: Any
    max_length: int
    eos: bool = True
    keep: Literal["end", "start"] = "end"
    allow_empty: bool = False

    def __post_init__(self) -> None:
        if self.eos and self.tokenizer.eos_token_id is None:
            raise OtterError(
                "the tokenizer has no EOS token, which was to be appended",
                hint="set `eos: false`, or give tokenizer_config.json an eos_token",
            )
        if self.max_length < 3:
            raise OtterError(
                f"max_length is {self.max_length}, too short for BOS, EOS and a token between",
                hint="give at least 3 tokens",
            )

    @property
    def pad_id(self) -> int:
        """The tokenizer's own, or 0: padding is masked, so any id is right."""
        return int(self.tokenizer.pad_token_id or 0)

    def __call__(self, texts: Sequence[str], what: str = "text") -> Encoded:
        """Raises OtterError, which names the first of `texts` (a `what`) without tokens."""
        # verbose=False: texts are cut on purpose, so the tokenizer need not warn of long ones.
        plain = [text for text in texts if not isinstance(text, ChatText)]
        read = self.tokenizer(plain, truncation=False, verbose=False)["input_ids"] if plain else []
        encoded, ids, lengths, cut = iter(read), [], [], 0
        for number, text in enumerate(texts, 1):
            tokens = list(text.ids) if isinstance(text, ChatText) else next(encoded)
            head, body, tail = self._parts(text, tokens)
            if not body and not (self.allow_empty and (head or tail)):
                raise OtterError(
                    f"{what} {number} has no tokens: {text[:40]!r}",
                    hint="the tokenizer knows none of its characters: remove the row",
                )
            fitted = self._fit(head, body, tail)
            lost = len(head) + len(body) + len(tail) - len(fitted)
            cut += lost > 0
            ids.append(fitted)
            lengths.append(self._length(text, tokens, fitted, lost))
        return Encoded(ids, Truncation(cut, len(ids), self.max_length), lengths)

    def token_at_character(self, text: str, ids: Sequence[int], character: int) -> int:
        """The index in a text's encoded `ids` of the token with this character; of the first token
        where the character was cut off. Raises OtterError for a tokenizer without offsets."""
        tokens, offsets = self._tokens_with_offsets(text)
        index = next((i for i, (_, end) in enumerate(offsets) if end > character), len(offsets) - 1)
        shifted, first = index - self._cut_at_start(text, tokens, ids), self._head_length(tokens)
        return min(max(shifted, first), len(ids) - 1)

    def token_spans(self, text: str, ids: Sequence[int]) -> list[tuple[int, int]]:
        """The characters (start, end) that each token of a text's encoded `ids` holds; (0, 0) for
        BOS, EOS and other tokens without characters. Raises OtterError for a tokenizer without
        offsets."""
        tokens, offsets = self._tokens_with_offsets(text)
        head, body, tail = self._parts(text, tokens)
        spans = [*offsets[: len(head) + len(body)], *((0, 0) for _ in tail)]
        cut = self._cut_at_start(text, tokens, ids)
        kept = [*spans[: len(head)], *spans[len(head) + cut :]]
        return kept[: len(ids) - len(tail)] + [(0, 0)] * len(tail)

    def _tokens_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """A text's tokens before any cut, and the characters of each."""
        if not self.tokenizer.is_fast:
            raise OtterError(
                "the tokenizer does not say which characters a token holds",
                hint="leave `since` and `spans` out, or use a base with a fast tokenizer",
            )
        read = self.tokenizer(
            str(text),
            add_special_tokens=not isinstance(text, ChatText),
            return_offsets_mapping=True,
            truncation=False,
            verbose=False,
        )
        return list(read["input_ids"]), [(start, end) for start, end in read["offset_mapping"]]

    def _head_length(self, tokens: list[int]) -> int:
        return int(tokens[:1] == [self.tokenizer.bos_token_id])

    def _cut_at_start(self, text: str, tokens: list[int], ids: Sequence[int]) -> int:
        """How many tokens after BOS were cut to give `ids`."""
        return sum(map(len, self._parts(text, tokens))) - len(ids) if self.keep == "end" else 0

    def _parts(self, text: str, tokens: list[int]) -> tuple[list[int], list[int], list[int]]:
        """BOS, the text, and EOS, which some tokenizers add themselves. The end of a dialogue is a
        part of its text."""
        start, eos = self._head_length(tokens), self.tokenizer.eos_token_id
        if not self.eos or isinstance(text, ChatText):
            return tokens[:start], tokens[start:], []
        end = len(tokens) - int(tokens[-1:] == [eos])
        return tokens[:start], tokens[start:end], [eos]

    def _fit(self, head: list[int], body: list[int], tail: list[int]) -> list[int]:
        room = self.max_length - len(head) - len(tail)
        kept = body[-room:] if self.keep == "end" else body[:room]
        return [*head, *kept, *tail]

    def _length(self, text: str, tokens: list[int], fitted: list[int], lost: int) -> int:
        if not isinstance(text, ChatText):
            return len(fitted)
        length, ended = turn_length(self.tokenizer, tokens)
        length -= int(ended and not self.eos)
        # A cut at the start shifts the remaining tokens.
        shifted = length - lost if self.keep == "end" else length
        return min(max(shifted, 1), len(fitted))


def state_key(tokens: Sequence[int]) -> str:
    """Names a prefix by its tokens, in stored rollouts and continuations."""
    return sha256_json(list(tokens))
