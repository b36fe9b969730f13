"""A report as Markdown: what the terminal shows, for a README or a pull request.

Names and texts from outside are escaped, so that they cannot become a heading, link or table."""

import re
from collections.abc import Iterator, Sequence

from otter_cli.core.formatting import terminal_text
from otter_cli.reports.page import FACTS_TITLE, Cell, Report, ReportSection, ReportTable, as_cell

# Marks inside a line: code, emphasis, links, images, table cells, strikethrough. An underscore
# within a word, as in the names of figures, is plain text.
_INLINE_MARKS = re.compile(r"[\\`*\[\]|]|~~|(?<![^\W_])_|_(?![^\W_])")
_ENTITY = re.compile(r"&(?=#?\w+;)")
# At the start of a paragraph: headings, quotes, lists, rules.
_BLOCK_MARK = re.compile(r"^\s*(#|>|[-+=](?=[\s=-]|$)|\d+(?=[.)](?:\s|$)))")


def markdown_text(text: str) -> str:
    """For a heading, a table's cell or a part of a line. A line break becomes a space."""
    line = " ".join(terminal_text(text).split("\n"))
    return _ENTITY.sub("&amp;", _INLINE_MARKS.sub(r"\\\g<0>", line)).replace("<", "&lt;")


def markdown_paragraph(text: str) -> str:
    """For the start of a line, where a mark could also start a heading, a list or a rule."""
    return _BLOCK_MARK.sub(_block_escaped, markdown_text(text))


def _block_escaped(match: re.Match[str]) -> str:
    return match[1] + "\\" if match[1].isdigit() else "\\" + match[1]


def markdown_page(report: Report) -> str:
    lines = [f"# {markdown_text(report.title)}", "", markdown_paragraph(report.lead)]
    for section in report.sections:
        lines += ["", *_markdown_section(section)]
    if report.facts:
        facts = (
            f"- {markdown_paragraph(name)}: {markdown_text(value)}" for name, value in report.facts
        )
        lines += ["", f"## {FACTS_TITLE}", "", *facts]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_section(section: ReportSection) -> Iterator[str]:
    yield f"{'#' * section.level} {markdown_text(section.title)}"
    for paragraph in section.text:
        yield from ("", markdown_paragraph(paragraph))
    for text in section.texts:
        one_line = " ".join(f"{text.prompt}{''.join(text.tokens)}".split())
        yield from ("", f"- {markdown_paragraph(text.label)}: {markdown_text(one_line)}")
    for table in section.tables:
        yield from ("", *_markdown_table(table))
    for note in section.notes:
        yield from ("", markdown_paragraph(note))


def _markdown_table(table: ReportTable) -> Iterator[str]:
    align = "---:" if table.numeric else "---"
    yield _markdown_row(table.columns)
    yield f"| {' | '.join(['---', *[align] * (len(table.columns) - 1)])} |"
    yield from map(_markdown_row, table.rows)


def _markdown_row(row: Sequence[Cell | str]) -> str:
    cells = map(as_cell, row)
    texts = [markdown_text(f"{cell.text} {cell.detail}".rstrip()) for cell in cells]
    return f"| {' | '.join(texts)} |"
