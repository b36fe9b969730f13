"""Tokens as text: the parts add up to the whole text, spaces and split characters included."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from otter_cli.decoding.results import token_texts

TEXT = "Once, a naïve café owner said: “Yes, 日本!”\n\nHuman: it's  fine."


@pytest.mark.parametrize("name", ["stories260K", "babyllama-tok361", "chat-7m"])
def test_the_parts_of_a_real_tokenizer_make_up_the_text(shared: Path, name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / name)
    ids = tokenizer(TEXT)["input_ids"]
    whole = tokenizer.decode(ids)
    for cut in range(1, len(ids)):
        before = tokenizer.decode(ids[:cut])
        if before.endswith("\ufffd"):
            continue
        texts = token_texts(tokenizer, ids[:cut], ids[cut:])
        assert len(texts) == len(ids) - cut
        assert before + "".join(texts) == whole


class Bytes:
    """A tokenizer of bytes: most characters of TEXT take two or three of its tokens."""

    def decode(self, ids: list[int], **options: Any) -> str:
        return bytes(ids).decode(errors="replace")


def test_a_split_character_comes_with_its_last_token() -> None:
    assert token_texts(Bytes(), list(b"caf"), list("é!".encode())) == ["", "é", "!"]


def test_a_character_that_is_never_finished_is_shown_as_such() -> None:
    assert token_texts(Bytes(), list(b"caf"), list("é".encode())[:1]) == ["\ufffd"]
    assert token_texts(Bytes(), [], []) == []


@pytest.mark.parametrize("name", ["stories260K", "babyllama-tok361", "chat-7m"])
def test_the_parts_of_a_long_text_take_no_long_decodings(shared: Path, name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / name)
    ids = tokenizer(TEXT * 20)["input_ids"]
    lengths = []

    class Counted:
        def decode(self, ids: list[int], **options: Any) -> str:
            lengths.append(len(ids))
            return str(tokenizer.decode(ids, **options))

    texts = token_texts(Counted(), ids[:3], ids[3:])
    assert tokenizer.decode(ids[:3]) + "".join(texts) == tokenizer.decode(ids)
    assert len(ids) > 300 and max(lengths) < 80
