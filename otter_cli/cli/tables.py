"""The tables of the verbs' pages: facts by name, and columns under titles.

Strings are shown as they are: the console takes no square bracket for markup.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text


def facts_table(rows: Iterable[tuple[str, RenderableType]]) -> Table:
    """One fact per row: its name, and a value that is folded where it is too long."""
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    return table


def plain_table(*titles: str, numeric: bool = False) -> Table:
    """An empty table without lines. With `numeric`, all columns but the first are right-aligned."""
    from rich.table import Table

    table = Table(*titles, box=None, header_style="bold", pad_edge=False)
    for column in table.columns[1:] if numeric else ():
        column.justify = "right"
    return table


def legend(text: str) -> Text:
    """What the columns of a table mean, below it."""
    from rich.text import Text

    return Text(text, style="dim")
