"""What a generation returns: tokens, signal scores, near-ties, counters, and the tokens as text.

Counters belong to the batch; every row of the batch carries the same passes and seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

TokenScores = list[float] | list[list[float]]


@dataclass
class GenerationCounters:
    """The cost of a generation. Passes, seconds and bytes are those of the whole batch."""

    base_passes: int = 0
    external_passes: int = 0
    rescoring_passes: int = 0  # of the base, one token each, to decide near-ties
    tokens_fed: int = 0
    tokens_kept: int = 0
    # By position of the draft: how often one was proposed there, and how often it was kept.
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    seconds: float = 0.0
    prefill_seconds: float = 0.0
    cache_bytes: int = 0


class ExternalModels:
    """The models that a selector, a scorer or a drafter runs beside the base, and their cost."""

    external_passes: int = 0
    external_bytes: int = 0  # of their caches

    def prefill(self, prompts: list[list[int]]) -> None:
        """Feeds the prompts to the models, where there are any."""
        return


@dataclass(frozen=True)
class NearTie:
    """A greedy choice in a step of many tokens that a step of one token might round differently.
    `position` counts generated tokens from 0. `best` and `second` are the two best tokens of the
    step of many, `gap` the difference of their logits. `one_token` is what the step of one token
    chooses, once `rescore_near_ties` has computed it."""

    position: int
    best: int
    second: int
    gap: float
    one_token: int | None = None


@dataclass
class Generation:
    """One row: tokens (EOS included), the base's log-probability of each, its signals by name."""

    tokens: list[int]
    logprobs: list[float]
    signals: dict[str, TokenScores]
    finish: Literal["eos", "length", "stop", "rejected"]
    counters: GenerationCounters
    message: str = ""  # which stop string or signal ended the row
    stopped_by: str = ""  # the stop string or the bound itself
    near_ties: list[NearTie] = field(default_factory=list)
    # The log-probability with which each token was drawn, guides included; 0 for a greedy choice.
    # Empty where drafts were verified.
    drawn: list[float] = field(default_factory=list)
    lossy: bool = False  # typical acceptance: the tokens do not follow the base's distribution


# A token's text depends on the few tokens before it: a space before a word, a split character.
_CONTEXT_TOKENS = 8
_MOST_TOKENS = 64


class IncrementalDetokenizer:
    """The text that each token adds, as tokens come. The last tokens are decoded together, because
    a token that is decoded alone may lose the space before a word. A character of several tokens
    comes with the last of them."""

    def __init__(self, tokenizer: Any, prompt: Sequence[int]) -> None:
        self.tokenizer, self.ids = tokenizer, list(prompt)
        self.before = self._decoded()

    def add(self, token: int) -> str:
        self.ids.append(token)
        return "" if self._decoded().endswith(_INCOMPLETE) else self.rest()

    def peek(self, token: int) -> str:
        """The text that `token` would add."""
        return self._decoded(token)[len(self.before) :]

    def rest(self) -> str:
        """The text that was not returned yet; at the end, an incomplete character."""
        text = self._decoded()
        added, self.before = text[len(self.before) :], text
        if len(self.ids) > _MOST_TOKENS and not text.endswith(_INCOMPLETE):
            self._forget()
        return added

    def _forget(self) -> None:
        """Drops all but the last tokens, so that a long text takes time in proportion to its
        length."""
        self.ids = self.ids[-_CONTEXT_TOKENS:]
        self.before = self._decoded()

    def _decoded(self, *more: int) -> str:
        ids = [*self.ids, *more]
        return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))


_INCOMPLETE = "\ufffd"


def token_texts(tokenizer: Any, prompt: Sequence[int], tokens: Sequence[int]) -> list[str]:
    """The text that each of the tokens adds to the prompt."""
    stream = IncrementalDetokenizer(tokenizer, prompt)
    texts = [stream.add(token) for token in tokens]
    return [*texts[:-1], texts[-1] + stream.rest()] if texts else []
