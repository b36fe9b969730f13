"""Diversity and dist-n against counts by hand."""

import pytest

from otter_cli.benchmarks.metrics.measures import distinct, diversity


def test_diversity_of_a_text_that_repeats_nothing() -> None:
    # Five words: 4 bigrams, 3 trigrams and 2 four-grams, all different.
    assert diversity("a b c d e") == pytest.approx(4 / 5 * 3 / 4 * 2 / 3)


def test_diversity_of_a_text_that_repeats_itself() -> None:
    # a b a b a b: bigrams ab ba ab ba ab (2 of 5), trigrams aba bab aba bab (2 of 4),
    # four-grams abab baba abab (2 of 3).
    assert diversity("a b a b a b") == pytest.approx(2 / 6 * 2 / 5 * 2 / 4)


@pytest.mark.parametrize("text", ["", "   ", "one", "one two three"])
def test_diversity_below_four_words_is_nought(text: str) -> None:
    assert diversity(text) == 0.0


def test_diversity_counts_words_and_not_characters_or_lines() -> None:
    assert diversity("a  b\nc\td e") == diversity("a b c d e")
    assert diversity("A a A a A") == diversity("x y x y x")


def test_distinct_pools_the_continuations_of_a_prompt() -> None:
    texts = ["the cat sat", "the cat ran", ""]
    # Words: the cat sat the cat ran. Bigrams: the cat, cat sat, the cat, cat ran.
    assert distinct(texts, 1) == pytest.approx(4 / 6)
    assert distinct(texts, 2) == pytest.approx(3 / 6)
    assert distinct(texts, 3) == pytest.approx(2 / 6)


def test_distinct_makes_no_bigram_across_two_texts() -> None:
    assert distinct(["a", "b"], 2) == 0.0


def test_distinct_of_nothing_is_nought() -> None:
    assert distinct([], 1) == 0.0
    assert distinct(["", " "], 1) == 0.0
