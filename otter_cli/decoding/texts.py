"""Generated tokens as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class TextStream:
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
    stream = TextStream(tokenizer, prompt)
    texts = [stream.add(token) for token in tokens]
    return [*texts[:-1], texts[-1] + stream.rest()] if texts else []
