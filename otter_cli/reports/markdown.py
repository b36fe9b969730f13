"""A report as Markdown: what the terminal shows, for a README or a pull request."""

from collections.abc import Iterator, Sequence

from otter_cli.reports.page import FACTS, Cell, Report, Section, Table, as_cell


def markdown_page(report: Report) -> str:
    lines = [f"# {report.title}", "", report.lead]
    for section in report.sections:
        lines += ["", *_section(section)]
    if report.facts:
        lines += ["", f"## {FACTS}", "", *(f"- {name}: {value}" for name, value in report.facts)]
    return "\n".join(lines).rstrip() + "\n"


def _section(section: Section) -> Iterator[str]:
    yield f"## {section.title}"
    for paragraph in section.text:
        yield from ("", paragraph)
    for text in section.texts:
        written = " ".join(f"{text.prompt}{''.join(text.tokens)}".split())
        yield from ("", f"- {text.label}: {written}")
    for table in section.tables:
        yield from ("", *_table(table))


def _table(table: Table) -> Iterator[str]:
    align = "---:" if table.numeric else "---"
    yield _row(table.columns)
    yield _row(["---", *[align] * (len(table.columns) - 1)])
    for row in table.rows:
        yield _row([_text(as_cell(cell)) for cell in row])


def _text(cell: Cell) -> str:
    return f"{cell.text} {cell.detail}".rstrip()


def _row(cells: Sequence[str]) -> str:
    escaped = (cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
    return f"| {' | '.join(escaped)} |"
