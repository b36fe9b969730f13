"""Generated tokens as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def token_texts(tokenizer: Any, prompt: Sequence[int], tokens: Sequence[int]) -> list[str]:
    """What each token adds to the text. Decoded alone, many would lose the space before a word; a
    character that is spread over tokens comes with the last of them."""

    def decoded(count: int) -> str:
        ids = [*prompt, *tokens[:count]]
        return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    texts, before = [], decoded(0)
    for count in range(1, len(tokens) + 1):
        text = decoded(count)
        if text.endswith("\ufffd") and count < len(tokens):
            texts.append("")
        else:
            texts.append(text[len(before) :])
            before = text
    return texts
