"""Nothing of a long text goes unread."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from otter_cli.scorers.detoxify import split_to_fit


def words_fit(limit: int):
    return lambda text: len(text.split()) <= limit


def test_a_text_that_fits_is_one_piece() -> None:
    assert split_to_fit("a short text", words_fit(10)) == ["a short text"]
    assert split_to_fit("", words_fit(10)) == [""]


def test_every_piece_fits_and_every_word_is_whole_in_one() -> None:
    words = [f"word{i}" for i in range(2_000)]
    pieces = split_to_fit(" ".join(words), words_fit(100))
    assert all(len(piece.split()) <= 100 for piece in pieces)
    assert set(words) <= {word for piece in pieces for word in piece.split()}


def test_what_stands_on_a_cut_is_whole_in_one_of_the_pieces() -> None:
    words = [f"word{i}" for i in range(300)]
    pieces = split_to_fit(" ".join(words), words_fit(200))
    assert len(pieces) == 2
    for first, second in itertools.pairwise(words):
        assert any(f"{first} {second}" in piece for piece in pieces)


@given(st.text(min_size=1, max_size=400), st.integers(4, 40))
def test_pieces_are_cut_from_the_text_and_end(text: str, limit: int) -> None:
    pieces = split_to_fit(text, lambda piece: len(piece) <= limit)
    position = 0
    for piece in pieces:
        found = text.find(piece, max(0, position - len(text)))
        assert found >= 0
        position = found
    covered = "".join(pieces)
    assert all(character in covered for character in text)
    assert all(len(piece) <= max(limit, 8) for piece in pieces)
