"""Long texts in overlapping pieces that a classifier can read whole."""

from collections.abc import Callable

OVERLAP = 100  # characters: what stands on a cut is seen whole by one of the two pieces


def chunks(text: str, fits: Callable[[str], bool]) -> list[str]:
    """Halves `text` until each piece fits; nothing of it is left out."""
    if len(text) < 8 or fits(text):
        return [text]
    middle, overlap = len(text) // 2, min(OVERLAP, len(text) // 8)
    left = text[: _word_end(text, middle + overlap)]
    right = text[_word_start(text, middle - overlap) :]
    return chunks(left, fits) + chunks(right, fits)


def _word_end(text: str, at: int) -> int:
    """The first gap after `at`, where one is near: half a word would be another word."""
    gap = text.find(" ", at, at + len(text) // 8)
    return at if gap < 0 else gap


def _word_start(text: str, at: int) -> int:
    gap = text.rfind(" ", at - len(text) // 8, at)
    return at if gap < 0 else gap + 1
