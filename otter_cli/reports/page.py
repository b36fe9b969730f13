"""What a report is made of. No renderer adds a word or a number of its own."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from otter_cli.reports.plots import Plot

FACTS = "What made these numbers"

Tone = Literal["plain", "good", "bad"]


@dataclass(frozen=True)
class Cell:
    """A table's cell: `detail` (an interval, say) stands smaller, below or after the text."""

    text: str
    detail: str = ""
    tone: Tone = "plain"


@dataclass(frozen=True)
class Table:
    """The first column names the rows; `numeric` says whether the others are aligned right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    numeric: bool = True

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"a row of {len(row)} cells under {len(self.columns)} columns")


@dataclass(frozen=True)
class ColouredText:
    """A text whose tokens show a signal by their colour, on the scale from `low` to `high`.

    `values` has a number for each of `tokens`, or None. `label` says which method wrote the text.
    """

    label: str
    prompt: str
    tokens: Sequence[str]
    values: Sequence[float | None]
    low: float
    high: float
    detail: str = ""


@dataclass(frozen=True)
class Section:
    """A heading with paragraphs, then plots, then coloured texts, then tables."""

    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    texts: Sequence[ColouredText] = ()


@dataclass(frozen=True)
class Report:
    """`facts` are short lines at the end, under a heading of their own; `data` is embedded in the
    HTML, as JSON."""

    title: str
    lead: str
    sections: Sequence[Section]
    facts: Sequence[tuple[str, str]] = ()
    data: Any = field(default=None, repr=False)


def as_cell(cell: Cell | str) -> Cell:
    return cell if isinstance(cell, Cell) else Cell(cell)
