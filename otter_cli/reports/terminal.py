"""A report in the terminal, laid out for 100 columns."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from otter_cli.core.formatting import terminal_text
from otter_cli.reports.page import Cell, ColouredText, Report, ReportTable, as_cell
from otter_cli.reports.tokens import colour_of

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.text import Text


# More columns of figures with intervals than this do not fit beside their names.
_COLUMNS = 5
_STYLES = {"plain": "", "good": "green", "bad": "red"}


def terminal_page(report: Report) -> "Group":
    """Everything but the plots, whose numbers the tables hold."""
    from rich.console import Group

    return Group(*_parts(report))


def _parts(report: Report) -> "Iterator[RenderableType]":
    from rich.text import Text

    yield Text(terminal_text(report.title), style="bold")
    yield Text(terminal_text(report.lead))
    for section in report.sections:
        yield Text()
        yield Text(terminal_text(section.title), style="bold cyan")
        for paragraph in section.text:
            yield Text(terminal_text(paragraph))
        for written in section.texts:
            yield _coloured(written)
        for table in section.tables:
            for part in _split_columns(table):
                yield _rich_table(part)


def _coloured(written: ColouredText) -> "Text":
    from rich.text import Text

    text = Text(terminal_text(f"{written.label}: "), style="bold")
    text.append(terminal_text(written.prompt), "not bold dim")
    for token, value in zip(written.tokens, written.values, strict=True):
        style = "" if value is None else colour_of(value, written.low, written.high)
        text.append(terminal_text(token), f"not bold {style}")
    return (
        text.append(f"  {terminal_text(written.detail)}", "not bold dim")
        if written.detail
        else text
    )


def _split_columns(table: ReportTable) -> Iterator[ReportTable]:
    """The table in pieces of a few columns, each with the names of the rows."""
    for start in range(1, max(len(table.columns), 2), _COLUMNS):
        taken = slice(start, start + _COLUMNS)
        yield ReportTable(
            [table.columns[0], *table.columns[taken]],
            [[row[0], *row[taken]] for row in table.rows],
            table.numeric,
        )


def _rich_table(table: ReportTable) -> "RenderableType":
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for i, column in enumerate(table.columns):
        # A name that does not fit goes on below: its end may be all that tells it from the next.
        drawn.add_column(
            Text(terminal_text(column)),
            justify="right" if i and table.numeric else "left",
            overflow="ellipsis" if i else "fold",
        )
    for row in table.rows:
        drawn.add_row(*(_rich_text(as_cell(cell)) for cell in row))
    return drawn


def _rich_text(cell: Cell) -> "Text":
    from rich.text import Text

    text = Text(terminal_text(cell.text), style=_STYLES[cell.tone])
    return text.append(f"\n{terminal_text(cell.detail)}", style="dim") if cell.detail else text
