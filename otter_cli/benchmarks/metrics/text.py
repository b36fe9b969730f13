"""How varied a text is, on words: what whitespace separates, case and punctuation kept."""

from collections.abc import Iterator, Sequence

Gram = tuple[str, ...]


def ngrams(words: Sequence[str], n: int) -> Iterator[Gram]:
    return (tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def diversity(text: str) -> float:
    """Product over n = 2, 3, 4 of unique n-grams / (n-grams + 1) (ARGS, arXiv 2402.01694).

    Below four words there is no 4-gram, and the product is 0: so for the empty response too.
    """
    words, product = text.split(), 1.0
    for n in (2, 3, 4):
        grams = list(ngrams(words, n))
        product *= len(set(grams)) / (len(grams) + 1)
    return product


def distinct(texts: Sequence[str], n: int) -> float:
    """dist-n: different n-grams of one prompt's continuations over their words (DExperts).

    Without a word there is nothing different: 0.
    """
    split = [text.split() for text in texts]
    total = sum(map(len, split))
    different = {gram for words in split for gram in ngrams(words, n)}
    return len(different) / total if total else 0.0
