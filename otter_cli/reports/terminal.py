"""Reports and generated texts in the terminal, laid out for 100 columns."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from otter_cli.core.formatting import terminal_text
from otter_cli.reports.page import (
    SIGNAL_COLOURS,
    Cell,
    ColouredText,
    Report,
    ReportTable,
    as_cell,
    colour_of,
    level_of,
    scale_of,
)

_WIDTH = 100
# More columns of figures with intervals than this do not fit beside their names.
_COLUMNS = 5
_STYLES = {"plain": "", "good": "green", "bad": "red"}


def terminal_page(report: Report) -> Group:
    """Everything but the plots, whose numbers are in the tables."""
    return Group(*_parts(report))


def _parts(report: Report) -> Iterator[RenderableType]:
    yield Text(terminal_text(report.title), style="bold")
    yield Text(terminal_text(report.lead))
    for section in report.sections:
        yield Text()
        yield Text(terminal_text(section.title), style="bold cyan")
        for paragraph in section.text:
            yield Text(terminal_text(paragraph))
        for text in section.texts:
            yield _coloured(text)
        for table in section.tables:
            for part in _split_columns(table):
                yield _rich_table(part)
        for note in section.notes:
            yield Text(terminal_text(note), style="dim")


def _coloured(coloured: ColouredText) -> Text:
    text = Text(terminal_text(f"{coloured.label}: "), style="bold")
    text.append(terminal_text(coloured.prompt), "not bold dim")
    for token, value in zip(coloured.tokens, coloured.values, strict=True):
        style = "" if value is None else colour_of(value, coloured.low, coloured.high)
        text.append(terminal_text(token), f"not bold {style}")
    if coloured.detail:
        text.append(f"  {terminal_text(coloured.detail)}", "not bold dim")
    return text


def _split_columns(table: ReportTable) -> Iterator[ReportTable]:
    """The table in pieces of a few columns, each with the names of the rows."""
    for start in range(1, max(len(table.columns), 2), _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        yield ReportTable(
            [table.columns[0], *table.columns[columns]],
            [[row[0], *row[columns]] for row in table.rows],
            table.numeric,
        )


def _rich_table(table: ReportTable) -> Table:
    rich_table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for i, column in enumerate(table.columns):
        # A long row name continues on the next line: names may differ only at their ends.
        rich_table.add_column(
            Text(terminal_text(column)),
            justify="right" if i and table.numeric else "left",
            overflow="ellipsis" if i else "fold",
        )
    for row in table.rows:
        rich_table.add_row(*(_rich_text(as_cell(cell)) for cell in row))
    return rich_table


def _rich_text(cell: Cell) -> Text:
    text = Text(terminal_text(cell.text), style=_STYLES[cell.tone])
    return text.append(f"\n{terminal_text(cell.detail)}", style="dim") if cell.detail else text


# ---------------------------------------------------------------- a generated text and its signals

_BARS = "▁▂▃▄▅▆▇█"
_SHOWN_ROWS = 12  # at each end of a long text

SignalValues = list[float | None]  # None where the value is not finite


def text_lines(record: dict[str, Any]) -> list[Text]:
    """The prompt and its text, coloured by the first signal, then what the colours mean.

    The scale runs from the text's lowest value to its highest: a reward has no fixed range.
    """
    name, values = next(iter(series_of(record).items()), ("", []))
    # In a chat, the answer starts on a new line; other text continues the prompt.
    separator = "\n" if record.get("chat") else ""
    text = Text(terminal_text(record["prompt"]) + separator, style="dim")
    low, high = scale_of(values)
    for i, token in enumerate(record["tokens"]):
        if token.get("special"):
            continue
        style = colour_of(values[i], low, high) if values else ""
        text.append(terminal_text(token["text"]), style=style)
    if not values:
        return [text]
    legend = Text(f"{name}: ", style="dim").append("low ", SIGNAL_COLOURS[0])
    middle = SIGNAL_COLOURS[len(SIGNAL_COLOURS) // 2]
    return [text, legend.append("middle ", middle).append("high", SIGNAL_COLOURS[-1])]


def sparklines(record: dict[str, Any]) -> list[Text]:
    """A line of bars for each signal, between its lowest and highest value.

    In a text with more tokens than bars, a bar is the mean of its tokens.
    """
    series = series_of(record)
    margin = max(map(len, series), default=0)
    lines = []
    for name, values in series.items():
        line = Text(name.ljust(margin), style="cyan")
        if not (finite := _finite(values)):
            lines.append(line.append(" no finite value", "dim"))
            continue
        low, high = f"{min(finite):+.2f}", f"{max(finite):+.2f}"
        means = _means(values, _WIDTH - margin - len(low) - len(high) - 3)
        scale = scale_of(means)
        bars = "".join(
            " " if mean is None else _BARS[level_of(mean, *scale, len(_BARS))] for mean in means
        )
        line.append(f" {low} ", "dim").append(bars, "default").append(f" {high}", "dim")
        lines.append(line)
    return lines


def token_table(record: dict[str, Any]) -> Table:
    """Tokens with log-probability and signals; of a long text the first and the last few."""
    series = series_of(record)
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("#", justify="right", style="dim")
    table.add_column("token")
    for name in ("logprob", *series):
        table.add_column(name, justify="right")
    count = len(record["tokens"])
    for i, token in enumerate(record["tokens"]):
        if _SHOWN_ROWS <= i < count - _SHOWN_ROWS:
            if i == _SHOWN_ROWS:
                table.add_row("", "...", *[""] * (1 + len(series)))
            continue
        scores = [_score_text(values[i]) for values in series.values()]
        table.add_row(str(i + 1), repr(token["text"])[1:-1], f"{token['logprob']:.2f}", *scores)
    return table


def _score_text(value: float | None) -> str:
    return "none" if value is None else f"{value:+.3f}"


def series_of(record: dict[str, Any]) -> dict[str, SignalValues]:
    """A list of numbers for each score. A signal of several scores has a list for each label."""
    series: dict[str, SignalValues] = {}
    for name, values in record["signals"].items():
        if values and isinstance(values[0], list):
            labels = record["labels"].get(name) or range(len(values[0]))
            for k, label in enumerate(labels):
                series[f"{name}.{label}"] = [value[k] for value in values]
        elif values:
            series[name] = values
    return series


def _finite(values: SignalValues) -> list[float]:
    return [value for value in values if value is not None]


def _means(values: SignalValues, width: int) -> SignalValues:
    """At most `width` values: the means of equally long stretches, over their finite values."""
    count = min(len(values), width)
    edges = [i * len(values) // count for i in range(count + 1)]
    parts = [_finite(values[start:stop]) for start, stop in pairwise(edges)]
    return [sum(part) / len(part) if part else None for part in parts]
