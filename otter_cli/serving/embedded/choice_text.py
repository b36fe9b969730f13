"""One choice of an answer as it grows: text, log-probabilities and signals of its tokens.

Text that could be the beginning of a stop string is held back until it is decided. Special tokens
are no text, but they count as tokens: signals and log-probabilities have an entry for them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from otter_cli.decoding.results import Generation, IncrementalDetokenizer
from otter_cli.serving.signal_schema import STOP_WHEN_FINISH

if TYPE_CHECKING:
    from otter_cli.decoding.shared_batch import RowToken

# The first token's text depends on the end of the prompt.
_CONTEXT_TOKENS = 8
# What OpenAI returns for the logarithm of 0, which JSON cannot hold.
_LEAST_LOGPROB = -9999.0
_FINISH_REASONS = {
    "eos": "stop",
    "stop": "stop",
    "length": "length",
    "rejected": STOP_WHEN_FINISH,
}


@dataclass
class TokenText:
    """A token with its text, which begins at the character `offset` of the choice, and the best
    tokens by their texts."""

    text: str
    offset: int
    logprob: float
    top: list[tuple[str, float]]


@dataclass
class ChoicePart:
    """What some tokens add to a choice."""

    text: str = ""
    tokens: list[TokenText] = field(default_factory=list)
    signals: dict[str, list[Any]] = field(default_factory=dict)
    finish_reason: str | None = None
    stop_reason: str | None = None


class ChoiceText:
    """Turns the tokens of one row into parts of its choice."""

    def __init__(
        self,
        tokenizer: Any,
        prompt: Sequence[int],
        stops: Sequence[str],
        signals: Sequence[str],
        logprobs: bool,
    ) -> None:
        self.words = IncrementalDetokenizer(tokenizer, prompt[-_CONTEXT_TOKENS:])
        self.special = set(tokenizer.all_special_ids)
        self.stops, self.signals, self.logprobs = list(stops), list(signals), logprobs
        self.held, self.stopped = "", False
        self.count = 0  # of tokens
        self.length = 0  # of the text, in characters, held back or not

    def add(self, tokens: Sequence[RowToken], ended: Generation | None = None) -> ChoicePart:
        """The part that `tokens` add; with the generation of a row that has ended, the last."""
        part = ChoicePart(signals={name: [] for name in self.signals})
        for token in tokens:
            part.text += self._add_token(token, part)
            for name, values in part.signals.items():
                values.append(token.signals[name])
        self.count += len(tokens)
        if ended is not None:
            part.text += self._release(self.words.rest(), last=True)
            part.finish_reason = _FINISH_REASONS[ended.finish]
            part.stop_reason = ended.stopped_by or None
        return part

    def _add_token(self, token: RowToken, part: ChoicePart) -> str:
        if self.logprobs:
            top = [(self.words.peek(each), _finite(logprob)) for each, logprob in token.top]
            text = self.words.peek(token.token)
            part.tokens.append(TokenText(text, self.length, _finite(token.logprob), top))
        added = self.words.add(token.token)
        if token.token in self.special:
            return ""
        self.length += len(added)
        return self._release(added)

    def _release(self, text: str, *, last: bool = False) -> str:
        """The text that is decided, up to a stop string."""
        if self.stopped:
            return ""
        self.held += text
        ends = [place for stop in self.stops if (place := self.held.find(stop)) >= 0]
        if ends:
            self.stopped = True
            return self.held[: min(ends)]
        keep = 0 if last else max((_overlap(self.held, stop) for stop in self.stops), default=0)
        cut = len(self.held) - keep
        released, self.held = self.held[:cut], self.held[cut:]
        return released


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` begin `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else _LEAST_LOGPROB


def chat_logprobs(tokens: Sequence[TokenText]) -> dict[str, Any]:
    """The `logprobs` of a chat's choice."""

    def entry(text: str, logprob: float) -> dict[str, Any]:
        # Part of a character has no bytes as text; OpenAI's clients take null for that.
        whole = "\ufffd" not in text
        return {
            "token": text,
            "logprob": logprob,
            "bytes": list(text.encode()) if whole else None,
        }

    content = [
        {**entry(token.text, token.logprob), "top_logprobs": [entry(*each) for each in token.top]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(tokens: Sequence[TokenText]) -> dict[str, Any]:
    """The `logprobs` of a completion's choice."""
    top = [dict(token.top) for token in tokens]
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": top if any(top) else None,
        "text_offset": [token.offset for token in tokens],
    }
