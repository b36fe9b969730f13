"""A report as Markdown: what the terminal shows, for a README or a pull request."""

from collections.abc import Iterator, Sequence

from otter_cli.reports.escaping import markdown_paragraph, markdown_text
from otter_cli.reports.page import FACTS, Cell, Report, Section, Table, as_cell


def markdown_page(report: Report) -> str:
    lines = [f"# {markdown_text(report.title)}", "", markdown_paragraph(report.lead)]
    for section in report.sections:
        lines += ["", *_section(section)]
    if report.facts:
        facts = (
            f"- {markdown_paragraph(name)}: {markdown_text(value)}" for name, value in report.facts
        )
        lines += ["", f"## {FACTS}", "", *facts]
    return "\n".join(lines).rstrip() + "\n"


def _section(section: Section) -> Iterator[str]:
    yield f"## {markdown_text(section.title)}"
    for paragraph in section.text:
        yield from ("", markdown_paragraph(paragraph))
    for text in section.texts:
        written = " ".join(f"{text.prompt}{''.join(text.tokens)}".split())
        yield from ("", f"- {markdown_paragraph(text.label)}: {markdown_text(written)}")
    for table in section.tables:
        yield from ("", *_table(table))


def _table(table: Table) -> Iterator[str]:
    align = "---:" if table.numeric else "---"
    yield _row(table.columns)
    yield f"| {' | '.join(['---', *[align] * (len(table.columns) - 1)])} |"
    for row in table.rows:
        yield _row([_text(as_cell(cell)) for cell in row])


def _text(cell: Cell) -> str:
    return f"{cell.text} {cell.detail}".rstrip()


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(markdown_text, cells))} |"
