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
    """What a generation cost. Passes and seconds are the batch's, which its rows share."""

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


@dataclass(frozen=True)
class NearTie:
    """A greedy choice out of a step of many tokens that a step of one might round the other way.

    `position` in the generated tokens; the two best tokens of the step of many and the gap between
    their logits; what the step of one token chooses, where it was asked (`rescore_near_ties`).
    """

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
    message: str = ""  # why it was stopped, where a stop string or a signal did
    near_ties: list[NearTie] = field(default_factory=list)
    # The log-probability by which each token was drawn, guides included: 0 of a greedy one. Nothing
    # where drafts were verified.
    drawn: list[float] = field(default_factory=list)
    lossy: bool = False  # drafts were accepted by likelihood: not the base's own distribution


class IncrementalDetokenizer:
    """What each token adds to the text, as they come. Decoded alone, many would lose the space
    before a word; a character that is spread over tokens comes with the last of them."""

    def __init__(self, tokenizer: Any, prompt: Sequence[int]) -> None:
        self.tokenizer, self.ids = tokenizer, list(prompt)
        self.before = self._decoded()

    def add(self, token: int) -> str:
        self.ids.append(token)
        return "" if self._decoded().endswith("\ufffd") else self.rest()

    def rest(self) -> str:
        """What is left at the end: a character that was never finished."""
        text = self._decoded()
        added, self.before = text[len(self.before) :], text
        return added

    def _decoded(self) -> str:
        return str(self.tokenizer.decode(self.ids, clean_up_tokenization_spaces=False))


def token_texts(tokenizer: Any, prompt: Sequence[int], tokens: Sequence[int]) -> list[str]:
    """What each of the tokens adds to the prompt's text."""
    stream = IncrementalDetokenizer(tokenizer, prompt)
    texts = [stream.add(token) for token in tokens]
    return [*texts[:-1], texts[-1] + stream.rest()] if texts else []
