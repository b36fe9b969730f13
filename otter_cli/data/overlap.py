"""Do training and test data share texts? Then a test measures memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Identified(Protocol):
    @property
    def identity(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Overlap:
    """How many of `test` rows have a text that training has too, and the first such rows."""

    shared: int
    test: int
    rows: tuple[int, ...]

    @property
    def share(self) -> float:
        return self.shared / self.test if self.test else 0.0


def find_overlap(train: Sequence[Identified], test: Sequence[Identified]) -> Overlap:
    """Texts count as the same when they differ in case and white space only."""
    seen = {normal_text(text) for row in train for text in row.identity}
    rows = [
        i for i, row in enumerate(test) if any(normal_text(text) in seen for text in row.identity)
    ]
    return Overlap(len(rows), len(test), tuple(rows[:10]))


def normal_text(text: str) -> str:
    """A text for comparison: without case and amounts of white space."""
    return " ".join(text.casefold().split())
