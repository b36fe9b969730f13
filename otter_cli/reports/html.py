"""A report as one HTML file: no network, no script that runs, light and dark."""

import json
from importlib.resources import files
from typing import Any

from otter_cli.core.escaping import json_text
from otter_cli.reports.colours import colour_of
from otter_cli.reports.escaping import html_text
from otter_cli.reports.page import FACTS, Cell, ColouredText, Report, Section, Table, as_cell
from otter_cli.reports.plots import Plot
from otter_cli.reports.svg import Colours, colours_of, draw


def html_page(report: Report) -> str:
    """The whole page as text; the data behind each plot stands below it, folded."""
    style = files("otter_cli.reports").joinpath("style.css").read_text(encoding="utf-8")
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html_text(report.title)}</title>\n<style>\n{style}</style>\n</head>",
            f'<body>\n<main>\n<h1>{html_text(report.title)}</h1>\n<p class="lead">',
            f"{html_text(report.lead)}</p>",
            *(_section(section) for section in report.sections),
            f"{_facts(report)}{_embedded(report.data)}</main>\n</body>\n</html>\n",
        ]
    )


def _section(section: Section) -> str:
    parts = [f"<h2>{html_text(section.title)}</h2>"]
    parts += [f"<p>{html_text(paragraph)}</p>" for paragraph in section.text]
    if section.plots:
        colours = colours_of(section.plots)
        figures = "".join(_figure(plot, colours) for plot in section.plots)
        parts.append(f'<div class="plots">{figures}</div>')
    if section.texts:
        parts.append(f'<div class="texts">{"".join(map(_coloured, section.texts))}</div>')
    parts += [_table(table) for table in section.tables]
    return f"<section>\n{chr(10).join(parts)}\n</section>"


def _coloured(text: ColouredText) -> str:
    """Tokens with their signal as background; a reader finds the number in each token's title."""
    spans = []
    for token, value in zip(text.tokens, text.values, strict=True):
        if value is None:
            spans.append(f"<span>{html_text(token)}</span>")
            continue
        colour = colour_of(value, text.low, text.high)
        spans.append(
            f'<span style="background:{colour}" title="{value:+.3f}">{html_text(token)}</span>'
        )
    detail = f"<small>{html_text(text.detail)}</small>" if text.detail else ""
    return (
        f'<div class="tokens"><b>{html_text(text.label)}</b>{detail}'
        f'<p><span class="prompt">{html_text(text.prompt)}</span>{"".join(spans)}</p></div>'
    )


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{html_text(column)}</th>' for column in table.columns)
    rows = []
    for row in table.rows:
        first, *others = map(as_cell, row)
        cells = f'<th scope="row">{_cell(first)}</th>' + "".join(
            f'<td class="{cell.tone}">{_cell(cell)}</td>' for cell in others
        )
        rows.append(f"<tr>{cells}</tr>")
    kind = ' class="numeric"' if table.numeric else ""
    body = "\n".join(rows)
    return (
        f'<div class="scroll"><table{kind}><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(cell: Cell) -> str:
    detail = f"<small>{html_text(cell.detail)}</small>" if cell.detail else ""
    return html_text(cell.text) + detail


def _figure(plot: Plot, colours: Colours) -> str:
    head, *rows = plot.data()
    data = _table(Table(head, rows))
    return (
        f"<figure><h3>{html_text(plot.title)}</h3>{draw(plot, colours)}"
        f"<details><summary>data</summary>{data}</details></figure>"
    )


def _facts(report: Report) -> str:
    if not report.facts:
        return ""
    facts = "".join(f"<dt>{html_text(k)}</dt><dd>{html_text(v)}</dd>" for k, v in report.facts)
    return f'<section>\n<h2>{FACTS}</h2>\n<dl class="facts">{facts}</dl>\n</section>\n'


def _embedded(data: Any) -> str:
    if data is None:
        return ""
    # Inside a string, `</script>` would end the element and `<!--` would hide its end.
    text = json_text(json.dumps(data, ensure_ascii=False, allow_nan=False))
    text = text.replace("<", "\\u003c")
    return f'<script type="application/json" id="data">{text}</script>\n'
